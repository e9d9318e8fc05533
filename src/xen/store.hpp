// A xenstore client on the loop: speaks the wire protocol itself, over xenstored's socket or /dev/xen/xenbus (the same
// bytes on both), so that nothing blocks, no hidden thread reads, and a xenstored that died is seen at once. It dials
// again with back-off, sets its watches anew, and each of them then fires, so their owners look at everything again.
//
// While there is no connection requests fail with Errc::unavailable; one that was under way too (a write may or may not
// have happened: all of ours can be repeated).
#pragma once

#include "util/clock.hpp"
#include "util/fd.hpp"
#include "util/log.hpp"
#include "util/result.hpp"
#include "util/task_group.hpp"
#include "util/wake.hpp"
#include "xen/store_wire.hpp"
#include "xen/types.hpp"

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace vtpmd::xen {

class Store;

/// A path that is watched; the destructor ends it. One coroutine waits at a time.
class Watch {
  public:
    Watch(Store& store, std::string path, std::string token);
    Watch(const Watch&) = delete;
    Watch& operator=(const Watch&) = delete;
    ~Watch();

    [[nodiscard]] const std::string& path() const noexcept { return path_; }
    /// Until the node or one below it changed. The first wait returns at once (xenstore fires a new watch), as does the
    /// first one after every reconnection. operation_aborted when cancelled, eof when the store has stopped.
    Task<error_code> wait() { return wake_.wait(); }
    /// What changed since the last call, as full or relative as the watched path was. Empty: anything may have.
    [[nodiscard]] std::vector<std::string> take_changes();

  private:
    friend class Store;
    void fired(std::string path);

    Store& store_;
    const std::string path_;
    const std::string token_;
    Wake wake_;
    std::vector<std::string> changes_;
    bool overflow_ = false;
};

/// A change that happens wholly or not at all.
struct StoreEdit {
    struct Write {
        std::string path;
        std::string value;
    };
    std::vector<std::string> must_exist; ///< else Errc::not_found and nothing is written
    std::vector<Write> writes;
    std::vector<std::string> removes; ///< not being there is fine
};

class Store {
  public:
    /// A fresh connection (non-blocking descriptor) to xenstored.
    using Dial = std::function<Result<UniqueFd>()>;

    Store(asio::any_io_executor executor, Clock& clock, const Log& log, Dial dial);
    Store(const Store&) = delete;
    Store& operator=(const Store&) = delete;
    ~Store();

    /// Keeps the connection until stop() and cancellation; then requests fail with Errc::canceled and watches end with
    /// eof.
    Task<> run();
    /// Before run() is cancelled: no further connection is made.
    void stop() noexcept { stopping_ = true; }

    /// Paths are absolute, or relative to the own domain's directory (/local/domain/N).
    Task<Result<std::string>> read(std::string path);
    /// Names of the children; any number of them.
    Task<Result<std::vector<std::string>>> directory(std::string path);
    Task<Result<void>> write(std::string path, std::string value);
    Task<Result<void>> mkdir(std::string path);
    /// The node and all below it; Errc::not_found if it is not there.
    Task<Result<void>> remove(std::string path);
    /// In one transaction, tried again when others were in between (Errc::busy after many tries).
    Task<Result<void>> apply(StoreEdit edit);
    /// Absent or unreadable: the default.
    Task<Result<std::uint64_t>> read_number(std::string path, std::uint64_t max);

    /// Must not outlive the store.
    std::unique_ptr<Watch> watch(std::string path);

    [[nodiscard]] bool is_connected() const noexcept { return connected_; }
    /// Connections made so far; for figures and tests.
    [[nodiscard]] unsigned connections() const noexcept { return connections_; }

  private:
    friend class Watch;
    struct Pending {
        explicit Pending(const asio::any_io_executor& executor)
            : wake(executor) {}
        Wake wake;
        std::optional<Result<std::string>> reply;
    };

    Task<Result<std::string>> call(StoreOp op, std::uint32_t transaction, std::string payload, std::string what);
    Task<Result<void>> apply_once(std::uint32_t transaction, const StoreEdit& edit);
    Task<Result<std::vector<std::string>>> directory_in_parts(std::string path);
    std::uint32_t queue(StoreOp op, std::uint32_t transaction, std::string_view payload);

    Task<> serve(UniqueFd fd);
    Task<> write_loop(asio::posix::stream_descriptor& link);
    /// Reads until the link breaks or the task is cancelled.
    Task<> read_loop(asio::posix::stream_descriptor& link);
    /// Whole messages at the front of `buffer`; false if they make no sense.
    bool take_messages(std::string& buffer);
    void on_message(const StoreHeader& header, std::string_view payload);
    void fail_pending(const Error& error);

    asio::any_io_executor executor_;
    Clock& clock_;
    const Log& log_;
    Dial dial_;

    std::map<std::uint32_t, Pending*> pending_;
    std::map<std::string, Watch*> watches_; ///< by token
    std::uint32_t next_request_ = 1;
    std::uint64_t next_token_ = 1;
    struct Message {
        StoreOp op;
        std::string bytes; ///< what is still to be written
    };
    std::deque<Message> out_; ///< the first perhaps begun
    bool unanswered_ = false; ///< a request is written whole, and its answer not there yet
    Wake out_wake_;
    bool connected_ = false;
    bool stopping_ = false;
    bool stopped_ = false;
    unsigned connections_ = 0;
};

/// dir + "/" + name
[[nodiscard]] inline std::string join_path(std::string_view dir, std::string_view name) {
    return fmt::format("{}/{}", dir, name);
}

} // namespace vtpmd::xen
