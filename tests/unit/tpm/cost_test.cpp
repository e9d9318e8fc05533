#include "hex.hpp"
#include "tpm/commands.hpp"
#include "tpm/cost.hpp"

#include <doctest/doctest.h>

namespace tpm_cost_test {

using namespace vtpmd;
using namespace vtpmd::tpm;
using test::hex;

TEST_SUITE("tpm") {
    TEST_CASE("cost: key generation, signing, decryption and self tests are long") {
        for (std::uint32_t code : {cc::create_primary, cc::create, cc::create_loaded, cc::sign, cc::quote,
                                   cc::rsa_decrypt, cc::self_test, cc::load, cc::activate_credential}) {
            CHECK(cost(TpmVersion::tpm20, code) == Cost::long_);
        }
        for (std::uint32_t code : {ord::create_endorsement_key_pair, ord::take_ownership, ord::create_wrap_key,
                                   ord::sign, ord::unbind, ord::quote, ord::make_identity, ord::self_test_full,
                                   ord::continue_self_test, ord::execute_transport, ord::vendor_deep_quote}) {
            CHECK(cost(TpmVersion::tpm12, code) == Cost::long_);
        }
    }
    TEST_CASE("cost: what a guest does all day is fast") {
        for (std::uint32_t code : {cc::get_random, cc::pcr_extend, cc::pcr_read, cc::nv_write, cc::nv_increment,
                                   cc::nv_read, cc::get_capability, cc::startup}) {
            CHECK(cost(TpmVersion::tpm20, code) == Cost::fast);
        }
        for (std::uint32_t code : {ord::get_random, ord::extend, ord::pcr_read, ord::nv_write_value, ord::oiap,
                                   ord::osap, ord::get_capability, ord::startup}) {
            CHECK(cost(TpmVersion::tpm12, code) == Cost::fast);
        }
    }
    TEST_CASE("cost: codes of one family say nothing in the other") {
        CHECK(cost(TpmVersion::tpm12, cc::create_primary) == Cost::fast);
        CHECK(cost(TpmVersion::tpm20, ord::take_ownership) == Cost::fast);
    }
    TEST_CASE("cost: a session is long to start only with an encrypted salt") {
        const Bytes unsalted = hex("8001 0000003b 00000176 40000007 40000007 0000");
        const Bytes salted = hex("8001 0000003b 00000176 81000001 40000007 0000");
        CHECK(cost(TpmVersion::tpm20, unsalted) == Cost::fast);
        CHECK(cost(TpmVersion::tpm20, salted) == Cost::long_);
        CHECK(cost(TpmVersion::tpm20, hex("8001 0000000a 00000176")) == Cost::fast);
    }
    TEST_CASE("cost: malformed commands are fast") {
        CHECK(cost(TpmVersion::tpm20, ByteView{}) == Cost::fast);
        CHECK(cost(TpmVersion::tpm12, hex("00c1 0000")) == Cost::fast);
    }
    TEST_CASE("maintenance: exactly the five ordinals") {
        for (std::uint32_t o = 0; o < 0x200; ++o) {
            CHECK(is_maintenance_ordinal(o) == (o >= 0x2c && o <= 0x30));
        }
    }
}

} // namespace tpm_cost_test
