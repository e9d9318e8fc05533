#include "hwtpm/drivers/embedded_device.hpp"

#include "engine/engine.hpp"
#include "hwtpm/drivers/embedded_state.hpp"
#include "hwtpm/drivers/measurements.hpp"
#include "tpm/commands.hpp"

#include <fstream>
#include <iterator>

namespace vtpmd::hwtpm {

namespace {

class EmbeddedDevice final : public TpmDevice {
  public:
    struct Parts {
        EmbeddedState state;
        std::unique_ptr<Engine> engine;
    };
    EmbeddedDevice(Parts parts, unsigned locality, const Log& log)
        : state_(std::move(parts.state))
        , engine_(std::move(parts.engine))
        , locality_(static_cast<std::uint8_t>(locality))
        , log_(log) {}

    /// Powers the TPM on; a fresh one if `state` is empty.
    Result<void> power_on(const EngineState& state);

    [[nodiscard]] std::string description() const override { return "embedded:" + state_.dir().string(); }
    Result<Bytes> transmit(ByteView command, std::chrono::milliseconds limit) override;
    Result<void> claim() override;
    Result<void> restart() override;
    void cancel() noexcept override { engine_->cancel(); }
    [[nodiscard]] bool exclusive() const override { return true; }

  private:
    Result<void> keep_staged();
    Result<void> extend_measurements();

    EmbeddedState state_;
    std::unique_ptr<Engine> engine_;
    std::uint8_t locality_;
    const Log& log_;

    bool behind_disk_ = false; ///< a write failed: what the engine holds was never acknowledged
};

/// The engine's change is durable, or the engine must not go on with it.
Result<void> EmbeddedDevice::keep_staged() {
    auto staged = engine_->take_staged();
    if (!staged) {
        return {};
    }
    auto kept = state_.replace(*staged);
    if (kept) {
        engine_->staged_is_durable();
        return kept;
    }
    engine_->staged_failed();
    engine_->power_off();
    behind_disk_ = true;
    return in_context(kept.error(), description() + ": its state cannot be kept");
}

Result<void> EmbeddedDevice::power_on(const EngineState& state) {
    if (auto r = engine_->power_on(state); !r) {
        return in_context(r.error(), description());
    }
    if (auto r = keep_staged(); !r) {
        return r;
    }
    auto started = transmit(tpm::startup_command(TpmVersion::tpm20, tpm::StartupMode::clear), {});
    if (!started) {
        return started.error();
    }
    if (auto r = tpm::check_response(*started, description() + ": TPM2_Startup"); !r) {
        return r;
    }
    return extend_measurements();
}

Result<void> EmbeddedDevice::extend_measurements() {
    const std::filesystem::path path = state_.dir() / "measurements";
    std::ifstream file(path);
    if (!file) {
        std::error_code ec;
        if (std::filesystem::exists(path, ec) || ec) {
            return make_error(Errc::permission, "{}: cannot be read", path.string());
        }
        return {};
    }
    const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    auto list = parse_measurements(text);
    if (!list) {
        return in_context(list.error(), path.string());
    }
    for (const Measurement& m : *list) {
        auto answer = transmit(tpm::pcr_extend_command(m.pcr, std::span(&m.value, 1)), {});
        if (!answer) {
            return answer.error();
        }
        if (auto r = tpm::check_response(*answer, fmt::format("{}: extending PCR {}", path.string(), m.pcr)); !r) {
            return r;
        }
    }
    log_.info("{}: {} measurements extended from {}", description(), list->size(), path.string());
    return {};
}

Result<void> EmbeddedDevice::claim() {
    if (behind_disk_) {
        return make_error(Errc::closed, "{}: stopped because its state could not be kept", description());
    }
    return {};
}

Result<void> EmbeddedDevice::restart() {
    if (!behind_disk_) {
        return {};
    }
    auto state = state_.load();
    if (!state) {
        return state.error();
    }
    if (!*state) {
        return make_error(Errc::not_found, "{}: its state is gone", description());
    }
    if (auto r = power_on(**state); !r) {
        return r;
    }
    behind_disk_ = false;
    return {};
}

Result<Bytes> EmbeddedDevice::transmit(ByteView command, std::chrono::milliseconds /*limit*/) {
    Bytes answer = engine_->execute(command, locality_);
    if (auto r = keep_staged(); !r) {
        return r.error();
    }
    return answer;
}

} // namespace

Result<std::unique_ptr<TpmDevice>> open_embedded(const std::filesystem::path& dir, unsigned locality, bool create,
                                                 const Log& log) {
    auto store = EmbeddedState::open(dir, create);
    if (!store) {
        return in_context(store.error(), "embedded TPM");
    }
    auto state = store->load();
    if (!state) {
        return in_context(state.error(), "embedded TPM");
    }
    if (!*state && !create) {
        return make_error(Errc::not_found, "{}: there is no TPM in it; --create makes one", dir.string());
    }
    auto engine = Engine::create(TpmVersion::tpm20);
    if (!engine) {
        return engine.error();
    }
    const bool fresh = !*state;
    auto device = std::make_unique<EmbeddedDevice>(
        EmbeddedDevice::Parts{.state = std::move(*store), .engine = std::move(*engine)}, locality, log);
    const EngineState nothing;
    if (auto r = device->power_on(fresh ? nothing : **state); !r) {
        return r.error();
    }
    if (fresh) {
        log.info("{}: a new TPM 2.0 was made", device->description());
    }
    return std::unique_ptr<TpmDevice>(std::move(device));
}

} // namespace vtpmd::hwtpm
