// A TPM behind an endpoint: answers every command with its own last byte, remembers what it was asked.
#pragma once

#include "guest/tpm_service.hpp"
#include "util/wire.hpp"

#include <fmt/format.h>

namespace vtpmd::fakes {

class FakeService final : public guest::TpmService {
  public:
    Task<Bytes> execute(Bytes command, std::uint8_t locality) override {
        ++commands;
        last_locality = locality;
        WireWriter w;
        w.be16(0x8001).be32(static_cast<std::uint32_t>(10 + answer_body + 1)).be32(0).zeros(answer_body);
        w.u8(std::to_integer<std::uint8_t>(command.back()));
        co_return w.take();
    }
    void cancel() override { called = "cancel"; }
    [[nodiscard]] TpmVersion version() const override { return TpmVersion::tpm20; }
    [[nodiscard]] bool running() const override { return on; }
    Task<Result<void>> init(bool delete_volatile, guest::ControlPeer) override {
        on = true;
        return answer(delete_volatile ? "init(delete)" : "init");
    }
    Task<Result<void>> stop() override {
        on = false;
        return answer("stop");
    }
    void shutdown() override { called = "shutdown"; }
    Task<Result<bool>> established() override { co_return true; }
    Task<Result<void>> reset_established(std::uint8_t l) override { return answer(fmt::format("reset {}", l)); }
    Task<Result<void>> hash_start() override { return answer("hash_start"); }
    Task<Result<void>> hash_data(Bytes data) override { return answer(fmt::format("hash_data {}", data.size())); }
    Task<Result<void>> hash_end() override { return answer("hash_end"); }
    Task<Result<void>> store_volatile() override { return answer("store_volatile"); }
    Task<Result<BufferSize>> buffer_size(std::uint32_t wanted) override {
        if (wanted != 0 && on) {
            co_return make_error(Errc::unsupported, "fake: running");
        }
        buffer = wanted == 0 ? buffer : wanted;
        co_return BufferSize{buffer, 2808, 4096};
    }
    Task<std::string> info(std::uint64_t) override { co_return "{}"; }
    Task<Result<Bytes>> get_blob(std::uint32_t type) override {
        const std::string text = fmt::format("blob{}", type);
        co_return to_bytes(as_bytes(text));
    }
    Task<Result<void>> set_blob(std::uint32_t type, Bytes blob, guest::ControlPeer) override {
        return answer(fmt::format("set_blob {} {}", type, blob.size()));
    }

    void control_gone(guest::ControlPeer) override { ++control_connections_gone; }

    bool on = true;
    unsigned control_connections_gone = 0;
    unsigned commands = 0;
    std::uint32_t buffer = 4096;
    std::size_t answer_body = 0; ///< bytes of each answer beside its header and last byte
    std::uint8_t last_locality = 255;
    std::string called;
    std::optional<Error> error;

  private:
    Task<Result<void>> answer(std::string what) {
        called = std::move(what);
        if (error) {
            co_return *error;
        }
        co_return Result<void>{};
    }
};

} // namespace vtpmd::fakes
