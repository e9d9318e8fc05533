// What a toolstack of 2006 asks for (proto/vtpm_managerd/messages.hpp), done with what this manager has: a number is a vTPM's name in a table of the
// store, OPEN starts the vTPM's instance as the API's start does, with its guest's socket at RUN_DIR/vtpm-NUMBER.sock.
#pragma once

#include "manager/instances/supervisor.hpp"
#include "manager/links/key_service.hpp"
#include "proto/vtpm_managerd/messages.hpp"
#include "util/fifo_lock.hpp"

namespace vtpmd::manager {

class LegacyService {
  public:
    /// All of it outlives the service.
    struct Parts {
        asio::any_io_executor executor;
        Vault& vault;
        KeyService& service;
        Supervisor& supervisor;
        std::function<Task<Result<void>>(Uuid)> stop;   ///< Control::stop()
        std::function<Task<Result<void>>(Uuid)> remove; ///< Control::remove()
        Clock& clock;
        const Log& log;
    };
    struct Options {
        std::string run_dir;
        TpmVersion new_vtpms = TpmVersion::tpm12;            ///< what OPEN of a new number makes
        Clock::duration patience = std::chrono::seconds(30); ///< for an instance to serve
    };
    LegacyService(Options options, Parts parts);

    /// One after another, whoever asks.
    Task<proto::legacy::Status> answer(proto::legacy::Request request);
    [[nodiscard]] std::string socket_of(std::uint32_t number) const;

  private:
    using Status = proto::legacy::Status;
    Task<Result<Status>> run(const proto::legacy::Open& request);
    Task<Result<Status>> run(const proto::legacy::Close& request);
    Task<Result<Status>> run(const proto::legacy::Delete& request);
    Task<Result<Status>> run(const proto::legacy::Refused& request);
    /// Registered, under this number.
    Task<Result<Uuid>> vtpm_of(std::uint32_t number);
    /// Until its guest can connect. False: its instance has ended, or does not come.
    Task<bool> wait_until_serving(std::uint32_t number, std::shared_ptr<Charge> charge);

    const Options options_;
    Parts parts_;
    FifoLock lock_;
    RateLimit refusals_{{.burst = 20, .interval = std::chrono::seconds{60}}}; ///< of lines in the log
};

} // namespace vtpmd::manager
