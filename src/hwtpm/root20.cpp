#include "hwtpm/root20.hpp"

#include "hwtpm/hardware_thread.hpp"

namespace vtpmd::hwtpm {

namespace {

class Root20 final : public RootOfTrust {
  public:
    Root20(std::unique_ptr<TpmDevice> device, Tpm20::Config config, asio::any_io_executor executor, const Log& log)
        : device_(std::move(device))
        , tpm_(std::make_unique<Tpm20>(*device_, std::move(config), log))
        , thread_(std::move(executor), {},
                  {.begin_batch = [this] { tpm_->begin_batch(); }, .end_batch = [this] { tpm_->end_batch(); }}) {}
    Root20(const Root20&) = delete;
    Root20& operator=(const Root20&) = delete;
    ~Root20() override {
        if (!closed_) {
            (void)thread_.run_blocking([this] { return stop(); });
        }
    }

    Result<void> start() {
        auto started = thread_.run_blocking([this]() -> Result<std::string> {
            if (auto r = tpm_->start(); !r) {
                return r.error();
            }
            return fmt::format("{} ({})", device_->description(), tpm_->part());
        });
        if (!started) {
            closed_ = true; // nothing to stop
            return started.error();
        }
        description_ = std::move(*started);
        banks_ = tpm_->banks();
        return {};
    }

    [[nodiscard]] TpmVersion version() const override { return TpmVersion::tpm20; }
    [[nodiscard]] std::string description() const override { return description_; }
    [[nodiscard]] std::vector<HashAlg> banks() const override { return banks_; }

    Task<Result<Bytes>> identity() override {
        return thread_.run(Urgency::routine, [this] { return tpm_->identity(); });
    }
    Task<Result<SealedSecret>> seal(SecretBytes secret, SealOptions options) override {
        return thread_.run(Urgency::routine, [this, secret = std::move(secret), options = std::move(options)] {
            return tpm_->seal(secret, options);
        });
    }
    Task<Result<SecretBytes>> unseal(SealedSecret sealed) override {
        return thread_.run(Urgency::urgent, [this, sealed = std::move(sealed)] { return tpm_->unseal(sealed); });
    }
    Task<Result<CounterRef>> counter_create() override {
        return thread_.run(Urgency::routine, [this] { return tpm_->counter_create(); });
    }
    Task<Result<std::uint64_t>> counter_read(CounterRef counter) override {
        return thread_.run(Urgency::urgent,
                           [this, counter = std::move(counter)] { return tpm_->counter_read(counter); });
    }
    Task<Result<std::uint64_t>> counter_increment(CounterRef counter) override {
        return thread_.run(Urgency::urgent,
                           [this, counter = std::move(counter)] { return tpm_->counter_increment(counter); });
    }
    Task<Result<void>> counter_delete(CounterRef counter) override {
        return thread_.run(Urgency::routine,
                           [this, counter = std::move(counter)] { return tpm_->counter_delete(counter); });
    }
    Task<Result<Bytes>> random(std::size_t count) override {
        return thread_.run(Urgency::routine, [this, count]() -> Result<Bytes> {
            if (count == 0 || count > random_limit) {
                return make_error(Errc::usage, "{} random bytes: 1 to {} at a time", count, random_limit);
            }
            return tpm_->random(count);
        });
    }
    Task<Result<std::vector<PcrValue>>> pcr_read(std::vector<PcrSelection> selections) override {
        return thread_.run(Urgency::routine,
                           [this, selections = std::move(selections)] { return tpm_->pcr_read(selections); });
    }

    Task<> close() override {
        if (closed_) {
            co_return;
        }
        closed_ = true;
        co_await thread_.close();
        (void)thread_.run_blocking([this] { return stop(); });
    }

  private:
    static constexpr std::size_t random_limit = 4096;

    Result<void> stop() {
        tpm_->stop();
        return {};
    }

    std::unique_ptr<TpmDevice> device_;
    std::unique_ptr<Tpm20> tpm_;
    std::string description_;
    std::vector<HashAlg> banks_;
    bool closed_ = false;
    HardwareThread thread_; ///< last: its thread uses all of the above
};

} // namespace

Result<std::unique_ptr<RootOfTrust>> make_root20(std::unique_ptr<TpmDevice> device, Tpm20::Config config,
                                                 asio::any_io_executor executor, const Log& log) {
    auto root = std::make_unique<Root20>(std::move(device), std::move(config), std::move(executor), log);
    if (auto r = root->start(); !r) {
        return r.error();
    }
    return std::unique_ptr<RootOfTrust>(std::move(root));
}

} // namespace vtpmd::hwtpm
