// A vTPM that is being made, on the real TPM library with an image and a manager that fail: it is whole, or was never there.
#include "check.hpp"
#include "fake_vtpm.hpp"
#include "instance/instance.hpp"
#include "instance/state/state_blob.hpp"
#include "loop.hpp"

#include <algorithm>

namespace new_vtpm_test {

using namespace vtpmd;
using namespace vtpmd::fakes;

namespace {

/// The manager's n-th certificate.
Bytes certificate(std::size_t n) {
    Bytes out(200);
    for (std::size_t i = 0; i < out.size(); ++i) {
        out[i] = static_cast<std::byte>(n * 77 + i * 13);
    }
    return out;
}

struct Making {
    explicit Making(TpmVersion version)
        : engine(Engine::create(version).value()) {
        manager.certify_answer = [](std::size_t n) -> Result<Bytes> { return certificate(n); };
        instance::InstanceConfig config;
        config.ek_certificates = true;
        instance::InstanceParts parts{loop.io.get_executor(), *engine, image, manager, loop.clock, loop.log, [] {}, {}};
        vtpm = std::make_unique<instance::Instance>(std::move(config), std::move(parts));
    }
    [[nodiscard]] bool saved() const { return manager.record != 0; }
    /// Of what a restart would load.
    [[nodiscard]] bool has(std::size_t n) const {
        auto state = instance::decode_state(engine->version(), image.stored(manager.record)->view());
        REQUIRE(state);
        const ByteView all = state->permanent.view();
        const Bytes wanted = certificate(n);
        return std::search(all.begin(), all.end(), wanted.begin(), wanted.end()) != all.end();
    }

    Loop loop;
    Points points{loop.io.get_executor()};
    std::unique_ptr<Engine> engine;
    FakeImage image{points};
    FakeManager manager{points};
    std::unique_ptr<instance::Instance> vtpm;
};

} // namespace

TEST_SUITE("new vTPM") {
    TEST_CASE("its first save has the certificates of all its endorsement keys") {
        for (const TpmVersion version : {TpmVersion::tpm20, TpmVersion::tpm12}) {
            Making m(version);
            REQUIRE(m.loop.run(m.vtpm->start(EngineState{})));
            REQUIRE(m.saved());
            CHECK(m.manager.offered.size() == 1);
            CHECK(m.has(1));
            CHECK(m.has(2) == (version == TpmVersion::tpm20));
            CHECK_FALSE(m.has(3));
            REQUIRE(m.loop.run(m.vtpm->close()));
        }
    }

    TEST_CASE("a manager that refuses a certificate, or goes before the second: nothing is saved, then or at the end") {
        for (const std::size_t at : {1, 2}) {
            Making m(TpmVersion::tpm20);
            m.manager.certify_answer = [at](std::size_t n) -> Result<Bytes> {
                return n == at ? Result<Bytes>(make_error(Errc::pcr_mismatch, "fake: closed")) : certificate(n);
            };
            const auto started = m.loop.run(m.vtpm->start(EngineState{}));
            REQUIRE(started.has_error());
            CHECK(started.error().code == Errc::pcr_mismatch);
            CHECK(started.error().message.find("certifying the endorsement keys") != std::string::npos);
            (void)m.loop.run(m.vtpm->close());
            CHECK_FALSE(m.saved());
            CHECK(m.image.prepares == 0);
        }
    }

    TEST_CASE("asked to stop at every await while it is made: nothing was saved, or all of it") {
        bool finished = false;
        for (std::size_t at = 0; !finished; ++at) {
            Making m(TpmVersion::tpm20);
            auto starting = m.loop.start(m.vtpm->start(EngineState{}));
            m.points.at = [&](std::size_t n) {
                if (n == at) {
                    asio::post(m.loop.io, [&] { starting->cancel(); });
                }
            };
            REQUIRE(m.loop.wait(*starting));
            finished = m.points.passed <= at;
            m.points.at = nullptr;
            (void)m.loop.run(m.vtpm->close());
            if (at < 2) { // it waits for a certificate
                CHECK_FALSE(m.saved());
            }
            if (m.saved()) {
                CHECK(m.has(1));
                CHECK(m.has(2));
            }
            REQUIRE(at < 50);
        }
    }
}

} // namespace new_vtpm_test
