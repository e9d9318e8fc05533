#include "engine/engine.hpp"
#include "tpm/header.hpp"

#include <doctest/doctest.h>

using namespace vtpmd;

namespace {
Bytes cmd(std::initializer_list<unsigned> b) {
    Bytes o;
    for (unsigned x : b) {
        o.push_back(static_cast<std::byte>(x));
    }
    return o;
}
} // namespace

TEST_SUITE("engine") {
    TEST_CASE("engine: a fresh TPM of each family starts, answers and stages its state") {
        for (TpmVersion v : {TpmVersion::tpm12, TpmVersion::tpm20}) {
            CAPTURE(to_string(v));
            auto engine = Engine::create(v).value();
            REQUIRE(engine->power_on({}).has_value());
            CHECK(engine->has_staged());
            Bytes startup = v == TpmVersion::tpm12 ? cmd({0, 0xc1, 0, 0, 0, 12, 0, 0, 0, 0x99, 0, 1})
                                                   : cmd({0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x44, 0, 0});
            Bytes r = engine->execute(startup, 0);
            CHECK(tpm::peek_header(r).code == 0);
            EngineState s = std::move(*engine->take_staged());
            CHECK_FALSE(s.permanent.empty());
            CHECK_FALSE(engine->has_staged());
            engine->power_off();
            REQUIRE(engine->power_on(s).has_value());
            CHECK_FALSE(engine->has_staged());
            CHECK(tpm::peek_header(engine->execute(startup, 0)).code == 0);
        }
    }
}
