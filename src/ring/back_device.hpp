// One device of the back end in xenstore: `backend/vtpm/DOMID/HANDLE` below the own domain. Watches it and its front
// end, answers the handshake (handshake.hpp), and serves the ring while there is one.
//
// The UUID in the directory is the toolstack's word and is not read from anywhere else. In a driver domain nobody else
// removes the directory: this does, once the front end's is gone. `state` is never written where the directory is not.
#pragma once

#include "ring/back_end.hpp"
#include "ring/handshake.hpp"
#include "util/uuid.hpp"

namespace vtpmd::ring {

struct DeviceId {
    xen::DomId domain = 0; ///< the front end's
    std::uint32_t handle = 0;
    friend auto operator<=>(const DeviceId&,
                            const DeviceId&) = default; // NOLINT(modernize-use-nullptr): clang-tidy 14 and <=>
};
/// "backend/vtpm/3/0", relative to the own domain.
[[nodiscard]] std::string back_directory(const DeviceId& id);
/// "3/0", as the log says it.
[[nodiscard]] std::string to_string(const DeviceId& id);

/// The UUID that the toolstack wrote. Errc::not_found: no such device; mismatch: none, or not a UUID.
Task<Result<Uuid>> read_uuid(xen::Store& store, DeviceId id);
/// Answers a new device with InitWait, so that the toolstack goes on, before anybody is ready to serve it. One that is
/// beyond that is left as it is. Errc::not_found: it is gone.
Task<Result<void>> accept_device(xen::Store& store, DeviceId id);
/// Tells a device's front end and the toolstack that nobody will serve it (Closed). Errc::not_found: it is gone.
Task<Result<void>> refuse_device(xen::Store& store, DeviceId id);

struct BackDeviceOptions {
    DeviceId id;
    Uuid uuid; ///< a directory with another is not this device
    Clock::duration spin = Clock::duration::zero();
    Clock::duration patience = std::chrono::seconds(10); ///< for the request that runs when the device must go
};

class BackDevice {
  public:
    enum class Ended : std::uint8_t {
        gone,        ///< the device was removed
        never_there, ///< there was no such device, or one with another UUID
        cancelled,   ///< xenstore is as it was, for whoever serves the device next
    };
    struct Parts {
        xen::Fabric& fabric;
        Clock& clock;
        const Log& log;
    };
    BackDevice(BackDeviceOptions options, Parts parts);
    BackDevice(const BackDevice&) = delete;
    BackDevice& operator=(const BackDevice&) = delete;
    ~BackDevice() = default;

    /// There is something to connect to: until then the device stays at InitWait. Outlives run().
    void open(CommandSink& sink);
    /// Until the device is gone or the task is cancelled.
    Task<Ended> run();

    [[nodiscard]] const DeviceId& id() const noexcept { return options_.id; }
    [[nodiscard]] bool connected() const noexcept { return ring_ != nullptr; }
    [[nodiscard]] const RingCounters& counters() const noexcept { return counters_; }

  private:
    enum class Step : std::uint8_t { again, rest, look_later, ended };
    Task<Ended> serve();
    /// Each change of what is watched is a reason to look.
    Task<> pass_on(xen::Watch& watch);
    /// nullopt: xenstore cannot tell now.
    Task<std::optional<DeviceFacts>> look();
    Task<> look_at_front(DeviceFacts& facts);
    Task<Step> act(BackHandshake::Action action, DeviceFacts facts);
    Task<Result<void>> connect(RingOffer offer);
    Task<bool> disconnect(Clock::duration patience);
    Task<Result<void>> write_state(XenbusState state);
    void warn(std::string_view what);

    const BackDeviceOptions options_;
    Parts parts_;
    const std::string directory_;
    CommandSink* sink_ = nullptr;

    BackHandshake handshake_;
    Wake wake_;
    std::string frontend_; ///< its directory, as the toolstack wrote it
    std::unique_ptr<xen::Watch> own_watch_;
    std::unique_ptr<xen::Watch> front_watch_;
    TaskGroup watching_;
    std::unique_ptr<BackEnd> ring_;
    RingCounters counters_;
    RateLimit limit_;
    RateLimit attached_{RateLimit::Config{.burst = 20}}; ///< of that line
    bool seen_ = false;
    bool lost_ = false; ///< xenstore forgot everything
};

} // namespace vtpmd::ring
