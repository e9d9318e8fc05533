#include "check.hpp"
#include "instance/migration/handover.hpp"
#include "instance/screen.hpp"
#include "instance/state/load_decision.hpp"
#include "instance/state/state_blob.hpp"
#include "tpm/commands.hpp"
#include "util/text.hpp"
#include "util/wire.hpp"

namespace instance_decisions_test {

using namespace vtpmd;
using namespace vtpmd::instance;

namespace {
const Uuid uuid = parse_uuid("00112233-4455-6677-8899-aabbccddeeff").value();
Bytes with_code(std::uint32_t code, ByteView body = {}) {
    WireWriter w;
    w.be16(0x00C1).be32(static_cast<std::uint32_t>(10 + body.size())).be32(code).bytes(body);
    return w.take();
}
} // namespace

TEST_SUITE("instance") {
    TEST_CASE("load, create or refuse: every cell") {
        using I = ImageFact;
        using M = ManagerFact;
        using A = LoadAction;
        struct Cell {
            I image;
            M manager;
            A asked, not_asked; ///< with and without --create
            Errc code;          ///< of the refusals
        };
        const Cell table[] = {
            {I::absent, M::nothing, A::create_image_and_fresh, A::refuse, Errc::not_found},
            {I::absent, M::registered, A::create_image_and_fresh, A::refuse, Errc::not_found},
            {I::absent, M::has_record, A::refuse, A::refuse, Errc::not_found},
            {I::absent, M::reset, A::create_image_and_fresh, A::create_image_and_fresh, {}},
            {I::absent, M::tombstone, A::refuse, A::refuse, Errc::tombstone},
            {I::empty, M::nothing, A::fresh_in_image, A::refuse, Errc::not_found},
            {I::empty, M::registered, A::fresh_in_image, A::refuse, Errc::not_found},
            {I::empty, M::has_record, A::load, A::load, {}},
            {I::empty, M::reset, A::fresh_in_image, A::fresh_in_image, {}},
            {I::empty, M::tombstone, A::refuse, A::refuse, Errc::tombstone},
            {I::has_state, M::nothing, A::refuse, A::refuse, Errc::mismatch},
            {I::has_state, M::registered, A::refuse, A::refuse, Errc::mismatch},
            {I::has_state, M::has_record, A::load, A::load, {}},
            {I::has_state, M::reset, A::refuse, A::refuse, Errc::rollback},
            {I::has_state, M::tombstone, A::refuse, A::refuse, Errc::tombstone},
            // Only the manager's own word on a reset makes a fresh TPM over a state.
            {I::given_up, M::nothing, A::refuse, A::refuse, Errc::mismatch},
            {I::given_up, M::registered, A::refuse, A::refuse, Errc::mismatch},
            {I::given_up, M::has_record, A::load, A::load, {}},
            {I::given_up, M::reset, A::fresh_after_reset, A::fresh_after_reset, {}},
            {I::given_up, M::tombstone, A::refuse, A::refuse, Errc::tombstone},
        };
        CHECK(std::size(table) == 4 * 5);
        for (const Cell& c : table) {
            for (bool asked : {true, false}) {
                CAPTURE(static_cast<int>(c.image));
                CAPTURE(static_cast<int>(c.manager));
                CAPTURE(asked);
                const LoadDecision d = decide_load({c.image, c.manager, asked}, uuid, "/x.img");
                CHECK(d.action == (asked ? c.asked : c.not_asked));
                if (d.action == A::refuse) {
                    CHECK(d.code == c.code);
                    CHECK(d.message.find("00112233") != std::string::npos);
                }
            }
        }
    }

    TEST_CASE("state envelope: round trip, every truncation, a byte behind, other versions") {
        EngineState s;
        s.permanent = SecretBytes(as_bytes("permanent"));
        s.volatile_state = SecretBytes(as_bytes("vol"));
        const SecretBytes blob = encode_state(TpmVersion::tpm12, s);
        auto back = decode_state(TpmVersion::tpm12, blob.view());
        REQUIRE(back);
        CHECK(back->permanent.equals(as_bytes("permanent")));
        CHECK(back->save_state.empty());
        CHECK(back->volatile_state.equals(as_bytes("vol")));
        for (std::size_t n = 0; n < blob.size(); ++n) {
            CHECK(decode_state(TpmVersion::tpm12, blob.view().first(n)).error().code == Errc::corrupt);
        }
        Bytes more = to_bytes(blob.view());
        more.push_back(std::byte{0});
        CHECK(decode_state(TpmVersion::tpm12, more).error().code == Errc::corrupt);
        CHECK(decode_state(TpmVersion::tpm20, blob.view()).error().code == Errc::mismatch);
        more = to_bytes(blob.view());
        more[5] = std::byte{4};
        CHECK(decode_state(TpmVersion::tpm12, more).error().code == Errc::version);
        const EngineState nothing;
        CHECK(decode_state(TpmVersion::tpm20, encode_state(TpmVersion::tpm20, nothing).view()).error().code ==
              Errc::corrupt);
    }

    TEST_CASE("state envelope: what is not confirmed says so in a version that older programs refuse") {
        EngineState s;
        s.permanent = SecretBytes(as_bytes("permanent"));
        CHECK(encode_state(TpmVersion::tpm20, s).view()[5] == std::byte{1});
        s.unconfirmed = SecretBytes(as_bytes("token"));
        const SecretBytes blob = encode_state(TpmVersion::tpm20, s);
        CHECK(blob.view()[5] == std::byte{2});
        auto back = decode_state(TpmVersion::tpm20, blob.view());
        REQUIRE(back);
        CHECK(back->unconfirmed.equals(as_bytes("token")));
        for (std::size_t n = 0; n < blob.size(); ++n) {
            CHECK(decode_state(TpmVersion::tpm20, blob.view().first(n)).error().code == Errc::corrupt);
        }
    }

    TEST_CASE("handover: golden question, every truncation, a byte behind, another ordinal") {
        TakeRequest request;
        request.uuid = *parse_uuid("00112233-4455-6677-8899-aabbccddeeff");
        request.token.fill(std::byte{0x5A});
        Bytes frame = encode_take(request);
        CHECK(to_hex(ByteView(frame).first(26)) == "01c10000003a56500003"
                                                   "00112233445566778899aabbccddeeff");
        CHECK(*parse_take(frame) == request);
        for (std::size_t n = 0; n < frame.size(); ++n) {
            CHECK_FALSE(parse_take(ByteView(frame).first(n)));
        }
        frame.push_back(std::byte{0});
        CHECK_FALSE(parse_take(frame));
        frame.pop_back();
        frame[9] = std::byte{4};
        CHECK(parse_take(frame).error().code == Errc::protocol);
    }

    TEST_CASE("screen: sizes and localities") {
        const ScreenPolicy p{TpmVersion::tpm20, false};
        const Bytes good = with_code(0x17B);
        CHECK_FALSE(screen(p, good, 0));
        CHECK_FALSE(screen(p, good, 4));
        CHECK(screen(p, good, 5) == tpm::Refusal::bad_locality);
        for (std::size_t n = 0; n < good.size(); ++n) {
            CHECK(screen(p, ByteView(good).first(n), 0) == tpm::Refusal::bad_size);
        }
        CHECK_FALSE(screen(p, with_code(0x17B, Bytes(4086)), 0));
        CHECK(screen(p, with_code(0x17B, Bytes(4087)), 0) == tpm::Refusal::bad_size);
    }

    TEST_CASE("screen: maintenance commands, plain and inside a transport session") {
        WireWriter wrapped;
        const Bytes inner = with_code(0x2C);
        wrapped.be32(static_cast<std::uint32_t>(inner.size())).bytes(inner);
        const Bytes transported = with_code(0xE7, wrapped.view());
        for (std::uint32_t code = 0x2C; code <= 0x30; ++code) {
            CHECK(screen({TpmVersion::tpm12, false}, with_code(code), 0) == tpm::Refusal::disabled);
            CHECK_FALSE(screen({TpmVersion::tpm12, true}, with_code(code), 0));
            CHECK_FALSE(screen({TpmVersion::tpm20, false}, with_code(code), 0));
        }
        CHECK(screen({TpmVersion::tpm12, false}, transported, 0) == tpm::Refusal::disabled);
        CHECK_FALSE(screen({TpmVersion::tpm12, true}, transported, 0));
        CHECK_FALSE(screen({TpmVersion::tpm12, false}, with_code(0xE7), 0)); // cut short: the TPM says so itself
        CHECK_FALSE(screen({TpmVersion::tpm12, false}, with_code(0x2B), 0));
        CHECK_FALSE(screen({TpmVersion::tpm12, false}, with_code(0x31), 0));
    }
}

} // namespace instance_decisions_test
