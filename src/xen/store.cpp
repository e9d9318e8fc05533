#include "xen/store.hpp"

#include "util/cancelled.hpp"
#include "util/text.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <sys/socket.h>
#include <unistd.h>
#include <utility>

namespace vtpmd::xen {

namespace {

constexpr std::size_t changes_kept = 64; ///< more, and a watch just says that anything may have changed
constexpr int transaction_tries = 64;
constexpr auto first_pause = std::chrono::milliseconds(50);
constexpr auto longest_pause = std::chrono::seconds(5);

std::string terminated(std::string_view s) {
    std::string out(s);
    out.push_back('\0');
    return out;
}

/// Without SIGPIPE where the link is a socket; /dev/xen/xenbus is none.
ssize_t write_quietly(int fd, std::string_view data) {
    ssize_t n = ::send(fd, data.data(), data.size(), MSG_NOSIGNAL);
    return n < 0 && errno == ENOTSOCK ? ::write(fd, data.data(), data.size()) : n;
}

Error no_connection() { return make_error(Errc::unavailable, "xenstore: no connection to xenstored"); }

} // namespace

// ---- Watch

Watch::Watch(Store& store, std::string path, std::string token)
    : store_(store)
    , path_(std::move(path))
    , token_(std::move(token))
    , wake_(store.executor_) {
    store_.watches_[token_] = this;
    if (store_.stopped_) {
        wake_.close();
    } else if (store_.connected_) {
        store_.queue(StoreOp::watch, 0, terminated(path_) + terminated(token_));
    }
}

Watch::~Watch() {
    store_.watches_.erase(token_);
    if (store_.connected_) {
        store_.queue(StoreOp::unwatch, 0, terminated(path_) + terminated(token_));
    }
}

void Watch::fired(std::string path) {
    if (changes_.size() >= changes_kept) {
        overflow_ = true;
    } else {
        changes_.push_back(std::move(path));
    }
    wake_.set();
}

std::vector<std::string> Watch::take_changes() {
    auto out = std::exchange(changes_, {});
    if (std::exchange(overflow_, false)) {
        out.clear();
    }
    return out;
}

// ---- Store: requests

Store::Store(asio::any_io_executor executor, Clock& clock, const Log& log, Dial dial)
    : executor_(std::move(executor))
    , clock_(clock)
    , log_(log)
    , dial_(std::move(dial))
    , out_wake_(executor_) {}

Store::~Store() {
    if (!watches_.empty() || !pending_.empty()) {
        log_.error("xenstore: {} watches and {} requests outlive their store", watches_.size(), pending_.size());
        std::abort();
    }
}

std::uint32_t Store::queue(StoreOp op, std::uint32_t transaction, std::string_view payload) {
    std::uint32_t id = next_request_++;
    std::string message;
    append_header(message, {op, id, transaction, static_cast<std::uint32_t>(payload.size())});
    message += payload;
    out_.push_back({op, std::move(message)});
    out_wake_.set();
    return id;
}

Task<Result<std::string>> Store::call(StoreOp op, std::uint32_t transaction, std::string payload, std::string what) {
    if (stopped_) {
        co_return make_error(Errc::canceled, "xenstore: stopped");
    }
    if (!connected_) {
        co_return no_connection();
    }
    if (payload.size() > store_payload_max) {
        co_return make_error(Errc::too_large, "xenstore: {}: {} bytes, at most {} fit", what, payload.size(),
                             store_payload_max);
    }
    Pending pending(executor_);
    std::uint32_t id = queue(op, transaction, payload);
    pending_[id] = &pending;
    (void)co_await pending.wake.wait();
    pending_.erase(id);
    if (!pending.reply) {
        co_return make_error(Errc::canceled, "xenstore: {}: stopped while waiting", what);
    }
    if (!*pending.reply && pending.reply->error().message.empty()) { // the server's refusal: the detail is its name
        co_return store_error(store_error_name(static_cast<int>(pending.reply->error().detail)), what);
    }
    co_return std::move(*pending.reply);
}

Task<Result<std::string>> Store::read(std::string path) {
    std::string payload = terminated(path);
    co_return co_await call(StoreOp::read, 0, std::move(payload), "read " + path);
}

Task<Result<std::uint64_t>> Store::read_number(std::string path, std::uint64_t max) {
    auto text = co_await read(path);
    if (!text) {
        co_return text.error();
    }
    auto number = parse_number(*text, max);
    if (!number) {
        co_return make_error(Errc::protocol, "xenstore: {}: '{}' is not a number up to {}", path, printable(*text),
                             max);
    }
    co_return *number;
}

Task<Result<std::vector<std::string>>> Store::directory(std::string path) {
    std::string payload = terminated(path);
    auto reply = co_await call(StoreOp::directory, 0, std::move(payload), "list " + path);
    if (reply) {
        co_return split_strings(*reply);
    }
    if (reply.error().code != Errc::too_large) {
        co_return reply.error();
    }
    co_return co_await directory_in_parts(std::move(path));
}

Task<Result<std::vector<std::string>>> Store::directory_in_parts(std::string path) {
    std::vector<std::string> names;
    std::string generation;
    std::size_t offset = 0;
    while (true) {
        std::string payload = terminated(path) + terminated(std::to_string(offset));
        auto reply = co_await call(StoreOp::directory_part, 0, std::move(payload), "list " + path);
        if (!reply) {
            co_return reply.error();
        }
        auto part = parse_directory_part(*reply);
        if (!part || (part->bytes == 0 && !part->last)) {
            co_return make_error(Errc::protocol, "xenstore: list {}: a part that makes no sense", path);
        }
        if (offset != 0 && part->generation != generation) { // the list changed in between: from the start
            names.clear();
            generation.clear();
            offset = 0;
            continue;
        }
        generation = part->generation;
        offset += part->bytes;
        names.insert(names.end(), part->names.begin(), part->names.end());
        if (part->last) {
            co_return names;
        }
    }
}

Task<Result<void>> Store::write(std::string path, std::string value) {
    std::string payload = terminated(path) + value;
    auto reply = co_await call(StoreOp::write, 0, std::move(payload), "write " + path);
    co_return reply ? Result<void>{} : Result<void>{reply.error()};
}

Task<Result<void>> Store::mkdir(std::string path) {
    std::string payload = terminated(path);
    auto reply = co_await call(StoreOp::mkdir, 0, std::move(payload), "mkdir " + path);
    co_return reply ? Result<void>{} : Result<void>{reply.error()};
}

Task<Result<void>> Store::remove(std::string path) {
    std::string payload = terminated(path);
    auto reply = co_await call(StoreOp::rm, 0, std::move(payload), "rm " + path);
    co_return reply ? Result<void>{} : Result<void>{reply.error()};
}

Task<Result<void>> Store::apply_once(std::uint32_t transaction, const StoreEdit& edit) {
    for (const std::string& path : edit.must_exist) {
        std::string payload = terminated(path);
        auto reply = co_await call(StoreOp::read, transaction, std::move(payload), "read " + path);
        if (!reply) {
            co_return reply.error();
        }
    }
    for (const StoreEdit::Write& w : edit.writes) {
        std::string payload = terminated(w.path) + w.value;
        auto reply = co_await call(StoreOp::write, transaction, std::move(payload), "write " + w.path);
        if (!reply) {
            co_return reply.error();
        }
    }
    for (const std::string& path : edit.removes) {
        std::string payload = terminated(path);
        auto reply = co_await call(StoreOp::rm, transaction, std::move(payload), "rm " + path);
        if (!reply && reply.error().code != Errc::not_found) {
            co_return reply.error();
        }
    }
    co_return Result<void>{};
}

Task<Result<void>> Store::apply(StoreEdit edit) {
    for (int i = 0; i < transaction_tries; ++i) {
        std::string empty = terminated("");
        auto started = co_await call(StoreOp::transaction_start, 0, std::move(empty), "start of a transaction");
        if (!started) {
            co_return started.error();
        }
        auto id = parse_number(std::string_view(started->c_str()), 0xffffffff);
        if (!id) {
            co_return make_error(Errc::protocol, "xenstore: '{}' is no transaction", printable(*started));
        }
        auto transaction = static_cast<std::uint32_t>(*id);
        auto done = co_await apply_once(transaction, edit);
        std::string verdict = terminated(done ? "T" : "F");
        auto ended = co_await call(StoreOp::transaction_end, transaction, std::move(verdict), "end of a transaction");
        if (!done) {
            co_return done.error();
        }
        if (ended) {
            co_return Result<void>{};
        }
        if (ended.error().code != Errc::busy) {
            co_return ended.error();
        }
    }
    co_return make_error(Errc::busy, "xenstore: a transaction was overtaken {} times", transaction_tries);
}

std::unique_ptr<Watch> Store::watch(std::string path) {
    return std::make_unique<Watch>(*this, std::move(path), fmt::format("vtpmd-{}", next_token_++));
}

// ---- Store: the connection

Task<> Store::run() {
    co_await asio::this_coro::throw_if_cancelled(false);
    Clock::duration pause = first_pause;
    bool said = false;
    while (true) {
        if (auto fd = dial_(); fd) {
            if (said) {
                log_.info("xenstore: connected again");
            }
            said = false;
            pause = first_pause;
            co_await serve(std::move(*fd));
        } else if (!std::exchange(said, true)) {
            log_.error("{}; trying again until xenstored is there", fd.error().message);
        }
        if (stopping_) {
            break;
        }
        // Joining the writer has disabled cancellation for this task.
        co_await asio::this_coro::reset_cancellation_state(asio::enable_terminal_cancellation());
        if (auto ec = co_await clock_.sleep_for(pause); ec) {
            break;
        }
        pause = std::min<Clock::duration>(pause * 2, longest_pause);
    }
    stopped_ = true;
    fail_pending(make_error(Errc::canceled, "xenstore: stopped"));
    for (auto& [token, watch] : watches_) {
        watch->wake_.close();
    }
}

Task<> Store::serve(UniqueFd fd) {
    asio::posix::stream_descriptor link(executor_, fd.release());
    connected_ = true;
    ++connections_;
    out_.clear();
    unanswered_ = false;
    for (auto& [token, watch] : watches_) {
        watch->overflow_ = true; // whatever changed while nobody told us
        queue(StoreOp::watch, 0, terminated(watch->path_) + terminated(token));
    }
    TaskGroup writer(executor_, log_);
    writer.spawn("xenstore writer", write_loop(link));
    co_await read_loop(link);
    connected_ = false;
    writer.cancel();
    co_await writer.join();
    if (!stopping_) {
        log_.error("xenstore: the connection is gone; connecting again");
    }
    fail_pending(stopping_ ? make_error(Errc::canceled, "xenstore: stopped") : no_connection());
}

Task<> Store::write_loop(asio::posix::stream_descriptor& link) {
    for (;;) {
        // One request at a time, for two reasons that lie in the kernel's /dev/xen/xenbus (Linux, drivers/xen/xenbus).
        // It queues a request whose body is still the file's buffer, where the next write() puts another (xenbus_xs.c,
        // xenbus_dev_request_and_reply): only an answer says that the body is sent. And it sets a watch inside write()
        // with the file's lock held, which its thread needs to hand over the answer before it (xenbus_dev_frontend.c,
        // xenbus_file_write and xenbus_dev_queue_reply): both would wait for ever.
        if (out_.empty() || unanswered_) {
            if (auto ended = co_await out_wake_.wait(); ended) {
                co_return;
            }
            continue;
        }
        // One message a write: the kernel's /dev/xen/xenbus takes the first and drops what follows it
        // (Linux, drivers/xen/xenbus/xenbus_dev_frontend.c, xenbus_file_write).
        std::string& bytes = out_.front().bytes;
        ssize_t n = write_quietly(link.native_handle(), bytes);
        if (n > 0) {
            bytes.erase(0, static_cast<std::size_t>(n));
            if (bytes.empty()) {
                out_.pop_front();
                unanswered_ = true;
            }
            continue;
        }
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            auto [ec] = co_await link.async_wait(asio::posix::stream_descriptor::wait_write, use_tuple);
            if (ec) {
                co_return;
            }
            continue;
        }
        // The reader notices a dead peer by itself; anything else is a connection in an unknown state.
        error_code ignored;
        link.cancel(ignored);
        co_return;
    }
}

Task<> Store::read_loop(asio::posix::stream_descriptor& link) {
    std::string buffer;
    std::array<char, 4096> chunk{};
    for (;;) {
        const bool stop = is_cancelled(co_await asio::this_coro::cancellation_state);
        if (stop) {
            co_return;
        }
        auto [ec] = co_await link.async_wait(asio::posix::stream_descriptor::wait_read, use_tuple);
        if (ec) {
            co_return;
        }
        ssize_t n = ::read(link.native_handle(), chunk.data(), chunk.size());
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) {
            continue;
        }
        if (n <= 0) {
            co_return;
        }
        buffer.append(chunk.data(), static_cast<std::size_t>(n));
        if (!take_messages(buffer)) {
            log_.error("xenstore: a message longer than the protocol allows");
            co_return;
        }
    }
}

bool Store::take_messages(std::string& buffer) {
    std::size_t at = 0;
    while (buffer.size() - at >= store_header_size) {
        std::array<char, store_header_size> raw{};
        std::copy_n(buffer.begin() + static_cast<std::ptrdiff_t>(at), raw.size(), raw.begin());
        StoreHeader header = parse_header(raw);
        // A watch event carries path and token and may be longer than a request.
        if (header.length > 2 * store_payload_max) {
            return false;
        }
        if (buffer.size() - at - store_header_size < header.length) {
            break;
        }
        on_message(header, std::string_view(buffer).substr(at + store_header_size, header.length));
        at += store_header_size + header.length;
    }
    buffer.erase(0, at);
    return true;
}

void Store::on_message(const StoreHeader& header, std::string_view payload) {
    if (header.op == StoreOp::watch_event) {
        auto parts = split_strings(payload);
        if (parts.size() >= 2) {
            if (auto it = watches_.find(parts[1]); it != watches_.end()) {
                it->second->fired(std::move(parts[0]));
            }
        }
        return;
    }
    if (std::exchange(unanswered_, false)) {
        out_wake_.set(); // the next may go
    }
    auto it = pending_.find(header.request);
    if (it == pending_.end()) {
        return; // the answer to a watch, or to a request whose caller was cancelled
    }
    if (header.op == StoreOp::error) {
        Error error = store_error(std::string_view(payload.data(), payload.find('\0')), "");
        error.message.clear();
        it->second->reply.emplace(std::move(error));
    } else {
        it->second->reply.emplace(std::string(payload));
    }
    it->second->wake.set();
}

void Store::fail_pending(const Error& error) {
    for (auto& [id, pending] : pending_) {
        if (!pending->reply) {
            pending->reply.emplace(error);
            pending->wake.set();
        }
    }
}

} // namespace vtpmd::xen
