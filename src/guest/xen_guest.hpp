// The endpoint xen:DOMID[/HANDLE]: a guest's ring, in front of the TPM.
#pragma once

#include "guest/endpoint.hpp"
#include "guest/locality_policy.hpp"
#include "guest/tpm_service.hpp"
#include "ring/back_device.hpp"

namespace vtpmd::guest {

struct XenGuestOptions {
    XenEndpoint endpoint;
    Uuid uuid;
    LocalityPolicy localities;
    /// How long the ring is watched after an answer: an instance has one guest, and nothing better to do.
    Clock::duration spin = std::chrono::microseconds(50);
    Clock::duration patience = std::chrono::seconds(10);
};

struct XenGuestCounters {
    std::uint64_t tpm12_questions = 0; ///< TPM 1.2 commands that a TPM 2.0 was asked
    std::uint64_t bad_locality = 0;
};

class XenGuest {
  public:
    XenGuest(XenGuestOptions options, xen::Fabric& fabric, Clock& clock, const Log& log);

    /// The TPM is ready: from now on the front end is connected to it. Outlives run().
    void open(TpmService& service);
    /// Until the device is gone or the task is cancelled. Before open() the device is kept at InitWait, so that the
    /// toolstack does not give up on a TPM that takes its time to start.
    Task<ring::BackDevice::Ended> run() { return device_.run(); }

    [[nodiscard]] bool connected() const noexcept { return device_.connected(); }
    [[nodiscard]] const ring::RingCounters& ring_counters() const noexcept { return device_.counters(); }
    [[nodiscard]] const XenGuestCounters& counters() const noexcept { return commands_.counters; }

  private:
    /// What the ring hands over, on its way to the TPM.
    class Commands final : public ring::CommandSink {
      public:
        Commands(xen::DomId domain, LocalityPolicy policy, const Log& log)
            : domain_(domain)
            , policy_(std::move(policy))
            , log_(log)
            , localities_(policy_.of(domain_, std::nullopt)) {}
        void connected(const Result<std::optional<std::string>>& label) override;
        Task<Bytes> execute(Bytes request, std::uint8_t locality) override;
        void cancel() override { service->cancel(); }
        TpmService* service = nullptr;
        XenGuestCounters counters;

      private:
        const xen::DomId domain_;
        const LocalityPolicy policy_;
        const Log& log_;
        Localities localities_; ///< of who is connected
        RateLimit limit_;
    };

    ring::BackDevice device_;
    Commands commands_;
};

} // namespace vtpmd::guest
