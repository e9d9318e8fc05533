// Management messages of the old protocol: any bytes of the administrator's vTPM. What is taken says itself again in bytes that
// are taken the same.
#include "fuzz.hpp"
#include "proto/vtpmmgr/management.hpp"
#include "util/wire.hpp"

namespace management_fuzz {

using namespace vtpmd;
using namespace vtpmd::proto;

namespace {

std::vector<Bytes> seeds() {
    using namespace management;
    const Uuid uuid{{std::byte{1}}};
    WireWriter key;
    key.zeros(19).be32(0).be32(0).be32(4).zeros(4).be32(0);
    const std::vector<management::Request> requests{
        GroupList{},
        GroupNew{},
        GroupDel{1},
        GroupActivate{1, Bytes(3)},
        GroupRegister{1, {}, {}, 0xFF},
        GroupUpdate{1, {}, {.sequence = 1, .platforms = {{}}, .labels = {{}}}, {0xFF}},
        GroupShow{1},
        GroupQuote{1, {}, 0xFF},
        GroupRecover1{1, key.take(), {}, 0xFF},
        GroupRecover2{1, {}, {}},
        VtpmList{1, 2},
        VtpmShow{uuid},
        VtpmEdit{uuid, 1},
        VtpmNew{1, uuid},
        VtpmDel{uuid}};
    std::vector<Bytes> out;
    for (const management::Request& r : requests) {
        out.push_back(encode(r));
    }
    return out;
}

void run(ByteView frame) {
    auto request = management::parse(frame);
    if (!request) {
        fuzz::fuzz_check(!request.error().message.empty(), "a refusal says why");
        return;
    }
    const auto again = management::parse(management::encode(*request));
    fuzz::fuzz_check(again && *again == *request, "what was taken is the same when it is sent again");
    if (const auto* recover = std::get_if<management::GroupRecover1>(&*request)) {
        (void)management::modulus_of_key(recover->key);
    }
    if (const auto* list = std::get_if<management::VtpmList>(&*request)) {
        fuzz::fuzz_check(management::encode_vtpm_list(std::vector<Uuid>(300), list->offset).size() + header_size <=
                             management::answer_limit,
                         "an answer fits the ring");
    }
}

const fuzz::Harness harness("management", seeds, run);

} // namespace

} // namespace management_fuzz
