// A TPM that can count, in the place of libtpms, which is one a process. Its state says which TPM it is (each that is made gets
// a number of its own), how far it has counted, and bytes that follow from both, so that a state which was mixed is seen.
#pragma once

#include "engine/engine.hpp"
#include "tpm/header.hpp"
#include "util/wire.hpp"

#include <functional>

namespace vtpmd::sim {

struct Count {
    std::uint64_t tpm = 0; ///< 0: none
    std::uint64_t value = 0;
    friend bool operator==(const Count&, const Count&) = default;
};

class ModelEngine final : public Engine {
  public:
    static constexpr std::uint32_t read = 0x17A; ///< TPM2_GetCapability: answers with the count
    static constexpr std::uint32_t add = 0x134;  ///< TPM2_NV_Increment: counts, answers with the count

    /// `make` numbers a TPM that is made.
    explicit ModelEngine(std::function<std::uint64_t()> make)
        : make_(std::move(make)) {}

    static Bytes command(std::uint32_t code) {
        WireWriter w;
        w.be16(0x8001).be32(12).be32(code).be16(0);
        return w.take();
    }
    /// nullopt: the TPM said no.
    static std::optional<Count> answer(ByteView response) {
        WireReader r(response);
        r.skip(6);
        if (r.be32() != 0 || response.size() != answer_size) {
            return std::nullopt;
        }
        Count c;
        c.tpm = r.be64();
        c.value = r.be64();
        return c;
    }

    Result<void> power_on(const EngineState& state) override {
        on_ = false;
        if (state.permanent.empty()) {
            now_ = {.tpm = make_(), .value = 0};
            staged_ = true;
        } else {
            auto known = decode(state.permanent.view());
            if (!known) {
                return known.error();
            }
            now_ = *known;
            staged_ = false;
        }
        on_ = true;
        return {};
    }
    void power_off() override { on_ = false; }
    [[nodiscard]] bool running() const override { return on_; }
    Bytes execute(ByteView command, std::uint8_t /*locality*/) override {
        const std::uint32_t code = tpm::peek_header(command).code;
        if (!on_) {
            return tpm::error_response(TpmVersion::tpm20, tpm::Refusal::failure);
        }
        if (code == add) {
            ++now_.value;
        }
        if (code == add || code == shutdown_code) {
            staged_ = true;
        }
        WireWriter w;
        w.be16(0x8001).be32(answer_size).be32(0).be64(now_.tpm).be64(now_.value);
        return w.take();
    }
    void cancel() override {}
    std::optional<EngineState> take_staged() override {
        if (!staged_) {
            return std::nullopt;
        }
        staged_ = false;
        EngineState s;
        s.permanent = encode(now_);
        return s;
    }
    [[nodiscard]] bool has_staged() const override { return staged_; }
    void staged_is_durable() override {}
    void staged_failed() override { staged_ = true; }
    Result<EngineState> snapshot() override {
        EngineState s;
        s.permanent = encode(now_);
        s.volatile_state = encode(now_);
        return s;
    }
    [[nodiscard]] TpmVersion version() const override { return TpmVersion::tpm20; }
    Result<void> resume(const SecretBytes& /*volatile_state*/) override { return {}; }
    [[nodiscard]] std::string failure() const override { return {}; }
    BufferSize buffer_size(std::uint32_t) override { return {4096, 2808, 4096}; }
    [[nodiscard]] std::string info(unsigned) const override { return "{}"; }
    [[nodiscard]] bool established() const override { return false; }
    Result<void> reset_established(std::uint8_t) override { return {}; }
    Result<void> hash_start() override { return {}; }
    Result<void> hash_data(ByteView) override { return {}; }
    Result<void> hash_end() override { return {}; }

    [[nodiscard]] const Count& now() const { return now_; }

  private:
    static constexpr std::uint32_t shutdown_code = 0x145;
    static constexpr std::uint32_t answer_size = 26;
    static std::byte filler(const Count& c, std::uint64_t i) {
        return static_cast<std::byte>(c.tpm * 31 + c.value * 7 + i);
    }
    static SecretBytes encode(const Count& c) {
        WireWriter w;
        w.be64(c.tpm).be64(c.value);
        for (std::uint64_t i = 0; i < 200 + c.value % 64; ++i) {
            w.u8(std::to_integer<std::uint8_t>(filler(c, i)));
        }
        return SecretBytes(w.view());
    }
    static Result<Count> decode(ByteView blob) {
        WireReader r(blob);
        Count c;
        c.tpm = r.be64();
        c.value = r.be64();
        for (std::uint64_t i = 0; i < 200 + c.value % 64; ++i) {
            if (static_cast<std::byte>(r.u8()) != filler(c, i)) {
                return make_error(Errc::corrupt, "the model TPM's state is mixed");
            }
        }
        if (!r.ok() || !r.rest().empty()) {
            return make_error(Errc::corrupt, "the model TPM's state has another length");
        }
        return c;
    }

    std::function<std::uint64_t()> make_;
    Count now_;
    bool on_ = false, staged_ = false;
};

} // namespace vtpmd::sim
