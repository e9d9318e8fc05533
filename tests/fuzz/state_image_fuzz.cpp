// An instance's image that anybody may have written. The input is a program of patches on a good image, so that the
// digests do not end every run at once: u8 flags (1: digests of the superblock are made right again, 2: those of the slots
// too, and the manager's record follows), then patches { u24 offset, u8 length, bytes }.
#include "fault_file.hpp"
#include "fuzz.hpp"
#include "run_task.hpp"
#include "store/aead.hpp"
#include "store/state_image.hpp"
#include "util/wire.hpp"

#include <algorithm>
#include <initializer_list>

namespace state_image_fuzz {

using namespace vtpmd;
using namespace vtpmd::store;

using test::run_task;

namespace {

constexpr std::size_t region = 4096;
constexpr std::size_t capacity = 256 * 1024;
const ImageIdentity identity{{}, TpmVersion::tpm20};

struct Good {
    Bytes content;
    SecretBytes record;
    Bytes state = Bytes(3000, std::byte{0x61});
};

const Good& good() {
    static const Good image = [] {
        asio::io_context loop;
        const Log log(LogLevel::error, [](LogLevel, std::string_view) {});
        test::FaultDisk disk(Bytes(2 * region + 2 * capacity), true);
        auto made = run_task(loop, StateImage::create(disk.open(), identity, log)).value();
        Good out;
        for (int i = 0; i < 2; ++i) {
            out.record = run_task(loop, made->prepare(out.state)).value();
            run_task(loop, made->accept()).value();
        }
        out.content = disk.content();
        return out;
    }();
    return image;
}

void put_digest(Bytes& content, std::size_t at, std::size_t size) {
    const Digest digest = sha256({ByteView(content).subspan(at, size - digest_size)});
    std::ranges::copy(digest, content.begin() + static_cast<std::ptrdiff_t>(at + size - digest_size));
}

std::vector<Bytes> seeds() {
    // Nothing changed; each superblock and each slot changed a little, with and without right digests.
    std::vector<Bytes> seeds{Bytes(1)};
    auto add = [&](std::initializer_list<unsigned> bytes) {
        Bytes& seed = seeds.emplace_back();
        for (unsigned b : bytes) {
            seed.push_back(static_cast<std::byte>(b));
        }
    };
    for (unsigned flags : {0U, 1U, 3U}) {
        add({flags, 0, 0, 40, 4, 0, 0, 0, 1});
        add({flags, 0, 0, 8, 4, 0, 0, 0, 2, 0, 0x10, 8, 4, 0, 0, 0, 2});
        add({flags, 0, 0x20, 16, 4, 0, 0, 0x20, 0});
        add({flags, 4, 0x20, 16, 4, 0, 4, 0, 0});
        add({flags, 4, 0x20, 64, 4, 1, 2, 3, 4});
    }
    return seeds;
}

void run(ByteView input) {
    Bytes content = good().content;
    SecretBytes record = good().record.clone();
    WireReader r(input);
    const unsigned flags = r.u8();
    while (r.ok() && r.remaining() >= 5) {
        std::size_t at = static_cast<std::size_t>(r.u8()) << 16U;
        at |= r.be16();
        const ByteView patch = r.bytes(std::min<std::size_t>(r.u8(), r.remaining()));
        if (at + patch.size() <= content.size()) {
            std::ranges::copy(patch, content.begin() + static_cast<std::ptrdiff_t>(at));
        }
    }
    if ((flags & 1U) != 0) {
        put_digest(content, 0, region);
        put_digest(content, region, region);
    }
    if ((flags & 2U) != 0) {
        const std::size_t slot = 2 * region + capacity; // the valid one
        WireReader header(ByteView(content).subspan(slot + 16));
        const std::size_t length = header.be32();
        if (length >= 4096 && length <= capacity) {
            put_digest(content, slot, length);
            std::copy_n(content.begin() + static_cast<std::ptrdiff_t>(slot + length - digest_size), digest_size,
                        record.mut().begin() + aead_key_size);
        }
    }
    test::FaultDisk disk(std::move(content), true);
    asio::io_context loop;
    const Log log(LogLevel::error, [](LogLevel, std::string_view) {});
    auto image = run_task(loop, StateImage::open(disk.open(), identity, log));
    if (image) {
        auto loaded = run_task(loop, (*image)->load(record.view()));
        // Whatever was done to it: the state that was saved, or none.
        fuzz::fuzz_check(!loaded || loaded->equals(good().state), "what is loaded is what was saved");
        if (!loaded && (*image)->had_state()) {
            auto written = run_task(loop, (*image)->prepare(good().state));
            fuzz::fuzz_check(!written, "nothing is written over a state that cannot be read");
        }
    }
}

const fuzz::Harness harness("state_image", seeds, run);

} // namespace

} // namespace state_image_fuzz
