// Linux' times for a TPM 2.0: drivers/char/tpm/tpm2-cmd.c.
#include "tpm/driver_patience.hpp"
#include "tpm/effect.hpp"

#include <doctest/doctest.h>
#include <set>

namespace tpm_driver_patience_test {

using namespace vtpmd;
using namespace vtpmd::tpm;

TEST_SUITE("driver_patience") {
    TEST_CASE("of a TPM 2.0 all but what Linux has a time for") {
        const std::set<std::uint32_t> timed{0x121, 0x129, 0x13E, 0x143, 0x144, 0x14E,
                                            0x177, 0x17A, 0x17B, 0x182, 0x185, 0x186};
        for (std::uint32_t code = 0x11F; code <= 0x19F; ++code) {
            CAPTURE(code);
            CHECK(driver_is_patient(TpmVersion::tpm20, code) == !timed.contains(code));
        }
        CHECK(driver_is_patient(TpmVersion::tpm20, 0x20000000));
    }

    TEST_CASE("a TPM 1.2 is waited for as long as it asks for") {
        for (std::uint32_t code = 1; code <= 0xFF; ++code) {
            CHECK(driver_is_patient(TpmVersion::tpm12, code));
        }
    }

    TEST_CASE("what is no command has nobody who waits") {
        CHECK(!driver_is_patient(TpmVersion::tpm12, 0));
        CHECK(!driver_is_patient(TpmVersion::tpm20, 0));
    }
}

} // namespace tpm_driver_patience_test
