#include "hwtpm/queue/hardware_root.hpp"

#include "hwtpm/operations.hpp"
#include "hwtpm/patient_device.hpp"
#include "hwtpm/queue/hardware_thread.hpp"
#include "hwtpm/queue/requests.hpp"
#include "hwtpm/queue/waiting_room.hpp"
#include "tpm/pcr.hpp"
#include "util/task_group.hpp"

namespace vtpmd::hwtpm {

namespace {

constexpr std::size_t random_limit = 4096;

class HardwareRoot final : public RootOfTrust {
  public:
    HardwareRoot(std::unique_ptr<PatientDevice> device, std::unique_ptr<Operations> tpm, asio::any_io_executor executor,
                 const Log& log)
        : device_(std::move(device))
        , tpm_(std::move(tpm))
        , random_(executor)
        , reads_(executor)
        , servers_(executor, log)
        , thread_(executor, {},
                  {.begin_batch = [this] { tpm_->begin_batch(); }, .end_batch = [this] { tpm_->end_batch(); }}) {}
    HardwareRoot(const HardwareRoot&) = delete;
    HardwareRoot& operator=(const HardwareRoot&) = delete;
    ~HardwareRoot() override {
        if (!closed_) {
            stop_blocking();
        }
    }

    Result<void> start();

    [[nodiscard]] TpmVersion version() const override { return tpm_->version(); }
    [[nodiscard]] std::string description() const override { return description_; }
    [[nodiscard]] std::vector<HashAlg> banks() const override { return banks_; }
    [[nodiscard]] HardwareMetrics metrics() const override;

    Task<Result<Bytes>> identity() override {
        return thread_.run(Urgency::routine, [this] { return tpm_->identity(); });
    }
    Task<Result<SealedSecret>> seal(SecretBytes secret, SealOptions options) override {
        return thread_.run(Urgency::routine, [this, secret = std::move(secret), options = std::move(options)] {
            return tpm_->seal(secret, options);
        });
    }
    // A vTPM waits for its group's key, an answer for its counter step: urgent.
    Task<Result<SecretBytes>> unseal(SealedSecret sealed) override {
        return thread_.run(Urgency::urgent, [this, sealed = std::move(sealed)] { return tpm_->unseal(sealed); });
    }
    Task<Result<SealedSecret>> seal_for(SecretBytes secret, Approver approver) override {
        return thread_.run(Urgency::routine, [this, secret = std::move(secret), approver = std::move(approver)] {
            return tpm_->seal_for(secret, approver);
        });
    }
    Task<Result<SecretBytes>> unseal_for(SealedSecret sealed, Approver approver, Approval approval) override {
        return thread_.run(Urgency::urgent,
                           [this, sealed = std::move(sealed), approver = std::move(approver),
                            approval = std::move(approval)] { return tpm_->unseal_for(sealed, approver, approval); });
    }
    Task<Result<Endorsement>> endorsement() override {
        return thread_.run(Urgency::routine, [this] { return tpm_->endorsement(); });
    }
    Task<Result<AttestationKey>> attestation_key_create(AttestationKeyOptions options) override {
        return thread_.run(Urgency::routine,
                           [this, options = std::move(options)] { return tpm_->attestation_key_create(options); });
    }
    Task<Result<Quote>> quote(AttestationKey key, QuoteRequest request) override {
        return thread_.run(Urgency::routine, [this, key = std::move(key), request = std::move(request)] {
            return tpm_->quote(key, request);
        });
    }
    Task<Result<SecretBytes>> activate_credential(AttestationKey key, Bytes credential) override {
        return thread_.run(Urgency::routine, [this, key = std::move(key), credential = std::move(credential)] {
            return tpm_->activate_credential(key, credential);
        });
    }
    Task<Result<CounterRef>> counter_reserve() override {
        return thread_.run(Urgency::routine, [this] { return tpm_->counter_reserve(); });
    }
    Task<Result<CounterRef>> counter_create(CounterRef reserved) override {
        return thread_.run(Urgency::routine,
                           [this, reserved = std::move(reserved)] { return tpm_->counter_create(reserved); });
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
    Task<Result<Bytes>> random(std::size_t count) override;
    Task<Result<std::vector<PcrValue>>> pcr_read(std::vector<PcrSelection> selections) override;
    Task<Result<Bytes>> pcr_extend(unsigned index, Bytes digest) override {
        return thread_.run(Urgency::routine, [this, index, digest = std::move(digest)]() -> Result<Bytes> {
            if (index >= pcr_count || digest.size() != digest_size(HashAlg::sha1)) {
                return make_error(Errc::usage,
                                  "PCR {} extended by {} bytes: PCRs go from 0 to 23, and are extended by 20", index,
                                  digest.size());
            }
            return tpm_->pcr_extend(index, digest);
        });
    }
    Task<> close() override;

  private:
    Task<> serve_random();
    Task<> serve_reads();
    [[nodiscard]] std::size_t random_bytes_asked() const;
    void stop_blocking();

    std::unique_ptr<PatientDevice> device_;
    std::unique_ptr<Operations> tpm_;

    std::string description_;
    std::vector<HashAlg> banks_;
    bool closed_ = false;

    RandomPool pool_{RandomPool::Config{}};
    WaitingRoom<std::size_t, Bytes> random_;
    WaitingRoom<std::vector<PcrSelection>, std::vector<PcrValue>> reads_;
    bool serving_random_ = false;
    bool serving_reads_ = false;
    HardwareMetrics counted_; ///< requests and trips of the merged kinds

    TaskGroup servers_;
    HardwareThread thread_; ///< last: its thread uses device_ and tpm_
};

Result<void> HardwareRoot::start() {
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

void HardwareRoot::stop_blocking() {
    (void)thread_.run_blocking([this]() -> Result<void> {
        tpm_->stop();
        tpm_->end_batch(); // given back before close() returns, not a moment after
        return {};
    });
}

Task<> HardwareRoot::close() {
    if (closed_) {
        co_return;
    }
    closed_ = true;
    // Those who wait for random bytes or PCRs were accepted too: their servers end when nobody waits.
    co_await servers_.join();
    co_await thread_.close();
    stop_blocking();
}

HardwareMetrics HardwareRoot::metrics() const {
    HardwareMetrics out = thread_.metrics();
    out.commands = device_->commands();
    out.retries = device_->retries();
    out.random_requests = counted_.random_requests;
    out.random_trips = counted_.random_trips;
    out.pcr_requests = counted_.pcr_requests;
    out.pcr_trips = counted_.pcr_trips;
    return out;
}

Task<Result<Bytes>> HardwareRoot::random(std::size_t count) {
    if (count == 0 || count > random_limit) {
        co_return make_error(Errc::usage, "{} random bytes: 1 to {} at a time", count, random_limit);
    }
    if (closed_) {
        co_return make_error(Errc::closed, "the hardware TPM is being closed");
    }
    ++counted_.random_requests;
    if (random_.empty()) { // else those who came before are served first
        if (auto ready = pool_.take(count)) {
            co_return std::move(*ready);
        }
    }
    auto caller = random_.enter(count);
    if (!std::exchange(serving_random_, true)) {
        servers_.spawn("random bytes", serve_random());
    }
    auto answer = co_await random_.wait(std::move(caller));
    co_return answer;
}

std::size_t HardwareRoot::random_bytes_asked() const {
    std::size_t out = 0;
    for (const auto& caller : random_.waiting()) {
        out += caller->request;
    }
    return out;
}

Task<> HardwareRoot::serve_random() {
    while (!random_.empty()) {
        if (auto bytes = pool_.take(random_.waiting().front()->request)) {
            random_.answer_first(std::move(*bytes));
            continue;
        }
        ++counted_.random_trips;
        const std::size_t size = pool_.fetch_size(random_bytes_asked());
        auto job = [this, size] { return tpm_->random(size); };
        auto fresh = co_await thread_.run(Urgency::routine, std::move(job));
        if (!fresh) {
            for (const auto& caller : random_.take_all()) {
                random_.answer(*caller, fresh.error());
            }
            break;
        }
        pool_.add(*fresh);
        cleanse(*fresh);
    }
    serving_random_ = false;
}

Task<Result<std::vector<PcrValue>>> HardwareRoot::pcr_read(std::vector<PcrSelection> selections) {
    if (closed_) {
        co_return make_error(Errc::closed, "the hardware TPM is being closed");
    }
    ++counted_.pcr_requests;
    auto caller = reads_.enter(std::move(selections));
    if (!std::exchange(serving_reads_, true)) {
        servers_.spawn("PCR reads", serve_reads());
    }
    auto answer = co_await reads_.wait(std::move(caller));
    co_return answer;
}

/// A read serves those who asked before it began: a value may not be older than the question.
Task<> HardwareRoot::serve_reads() {
    while (!reads_.empty()) {
        auto callers = reads_.take_all();
        std::vector<std::vector<PcrSelection>> asked;
        for (const auto& caller : callers) {
            asked.push_back(caller->request);
        }
        ++counted_.pcr_trips;
        auto job = [this, all = merged(asked)] {
            return tpm_->pcr_read(all);
        }; // named: GCC 12 destroys a temporary twice
        auto values = co_await thread_.run(Urgency::routine, std::move(job));
        for (const auto& caller : callers) {
            reads_.answer(*caller, values ? Result<std::vector<PcrValue>>(part_of(*values, caller->request))
                                          : Result<std::vector<PcrValue>>(values.error()));
        }
    }
    serving_reads_ = false;
}

Result<std::unique_ptr<RootOfTrust>> start_root(std::unique_ptr<PatientDevice> device, std::unique_ptr<Operations> tpm,
                                                asio::any_io_executor executor, const Log& log) {
    auto root = std::make_unique<HardwareRoot>(std::move(device), std::move(tpm), std::move(executor), log);
    if (auto r = root->start(); !r) {
        return r.error();
    }
    return std::unique_ptr<RootOfTrust>(std::move(root));
}

} // namespace

Result<std::unique_ptr<RootOfTrust>> make_root20(std::unique_ptr<TpmDevice> device, Tpm20::Config config,
                                                 asio::any_io_executor executor, const Log& log) {
    auto patient = std::make_unique<PatientDevice>(std::move(device), PatientDevice::Config{});
    auto tpm = std::make_unique<Tpm20>(*patient, std::move(config), log);
    return start_root(std::move(patient), std::move(tpm), std::move(executor), log);
}

Result<std::unique_ptr<RootOfTrust>> make_root12(std::unique_ptr<TpmDevice> device, Tpm12::Config config,
                                                 asio::any_io_executor executor, const Log& log) {
    auto patient = std::make_unique<PatientDevice>(std::move(device), PatientDevice::Config{});
    auto tpm = std::make_unique<Tpm12>(*patient, std::move(config), log);
    return start_root(std::move(patient), std::move(tpm), std::move(executor), log);
}

} // namespace vtpmd::hwtpm
