#include "xen/sim_store.hpp"

#include "util/cancelled.hpp"

#include "util/text.hpp"
#include "util/wake.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <sys/socket.h>

namespace vtpmd::xen {

namespace {

std::string parent_of(const std::string& path) {
    auto slash = path.rfind('/');
    return slash == 0 || slash == std::string::npos ? "/" : path.substr(0, slash);
}

bool is_below(std::string_view path, std::string_view dir) {
    return path.size() > dir.size() && path.starts_with(dir) && (dir == "/" || path[dir.size()] == '/');
}

std::string home_of(DomId domain) { return fmt::format("/local/domain/{}", domain); }

} // namespace

SimStore::SimStore(asio::any_io_executor executor, const Log& log)
    : executor_(executor)
    , log_(log)
    , tasks_(executor, log) {
    nodes_["/"] = Node{};
}

SimStore::~SimStore() = default;

Result<UniqueFd> SimStore::dial(DomId domain) {
    if (down_) {
        return make_error(Errc::unavailable, "simulated xenstore: down");
    }
    std::array<int, 2> fds{-1, -1};
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds.data()) != 0) {
        return errno_error(errno, "socketpair");
    }
    asio::dispatch(executor_, [this, domain, server = std::make_shared<UniqueFd>(fds[1])] {
        auto connection = std::make_shared<Connection>(executor_, domain, server->release());
        connections_.push_back(connection);
        tasks_.spawn("simulated xenstored", serve(std::move(connection)));
    });
    return UniqueFd(fds[0]);
}

Task<> SimStore::down() {
    down_ = true;
    tasks_.cancel();
    co_await tasks_.join();
    connections_.clear();
}

// ---- the tree

const SimStore::Node* SimStore::find(const Transaction* tx, const std::string& path) const {
    if (tx != nullptr) {
        if (auto it = tx->changes.find(path); it != tx->changes.end()) {
            return it->second ? &*it->second : nullptr;
        }
    }
    auto it = nodes_.find(path);
    return it == nodes_.end() ? nullptr : &it->second;
}

const SimStore::Node* SimStore::nearest(const Transaction* tx, std::string path) const {
    while (true) {
        if (const Node* node = find(tx, path)) {
            return node;
        }
        path = parent_of(path);
    }
}

bool SimStore::allowed(DomId domain, const Node& node, char access) const {
    if (domain == 0 || node.owner == domain) {
        return true;
    }
    auto it = node.perms.find(domain);
    char have = it == node.perms.end() ? node.others : it->second;
    return have == access || have == 'b';
}

void SimStore::put(Transaction* tx, const std::string& path, Node node) {
    node.generation = ++generation_;
    if (tx != nullptr) {
        tx->changes[path] = std::move(node);
    } else {
        nodes_[path] = std::move(node);
    }
}

int SimStore::write(DomId domain, Transaction* tx, const std::string& path, std::optional<std::string> value) {
    const Node* near = nearest(tx, path);
    if (!allowed(domain, *near, 'w')) {
        return EACCES;
    }
    Node fresh = *near;
    if (domain != 0) {
        fresh.owner = domain;
    }
    if (const Node* old = find(tx, path)) {
        if (!value) {
            return 0; // mkdir of what is there
        }
        Node changed = *old;
        changed.value = std::move(*value);
        put(tx, path, std::move(changed));
        return 0;
    }
    std::vector<std::string> missing;
    for (std::string up = parent_of(path); find(tx, up) == nullptr; up = parent_of(up)) {
        missing.push_back(up);
    }
    fresh.value.clear();
    for (const std::string& up : missing) {
        put(tx, up, fresh);
    }
    fresh.value = value.value_or("");
    put(tx, path, std::move(fresh));
    // A child that comes or goes changes its parent, as far as transactions go.
    if (tx == nullptr) {
        nodes_[parent_of(path)].generation = ++generation_;
    }
    return 0;
}

int SimStore::erase(DomId domain, Transaction* tx, const std::string& path) {
    const Node* node = find(tx, path);
    if (node == nullptr) {
        return ENOENT;
    }
    if (!allowed(domain, *node, 'w') || path == "/") {
        return EACCES;
    }
    auto first = nodes_.lower_bound(path + "/");
    auto last = nodes_.lower_bound(path + "0"); // '0' follows '/'
    if (tx == nullptr) {
        nodes_.erase(first, last);
        nodes_.erase(path);
        return 0;
    }
    for (auto it = first; it != last; ++it) {
        tx->changes[it->first] = std::nullopt;
    }
    for (auto& [p, change] : tx->changes) {
        if (is_below(p, path)) {
            change = std::nullopt;
        }
    }
    tx->changes[path] = std::nullopt;
    return 0;
}

void SimStore::fire(const std::string& path) {
    const bool gone = !nodes_.contains(path);
    const Node* near = nearest(nullptr, path);
    std::vector<std::string> seen_from{path};
    while (seen_from.back().starts_with('/') && seen_from.back() != "/") {
        seen_from.push_back(parent_of(seen_from.back()));
    }
    for (auto it = connections_.begin(); it != connections_.end();) {
        auto c = it->lock();
        if (!c) {
            it = connections_.erase(it);
            continue;
        }
        ++it;
        if (!allowed(c->domain, *near, 'r')) {
            continue;
        }
        const auto tell = [&](std::string said, const Watch& watch) {
            if (watch.relative) {
                said.erase(0, home_of(c->domain).size() + 1);
            }
            const std::string payload = said + '\0' + watch.token + '\0';
            queue(*c, {StoreOp::watch_event, 0, 0, static_cast<std::uint32_t>(payload.size())}, payload);
        };
        for (const std::string& watched : seen_from) {
            auto [first, last] = c->watches.equal_range(watched);
            std::for_each(first, last, [&](const auto& entry) { tell(path, entry.second); });
        }
        if (gone) { // and with it what was below
            std::for_each(c->watches.lower_bound(path + "/"), c->watches.lower_bound(path + "0"),
                          [&](const auto& entry) { tell(entry.first, entry.second); });
        }
    }
}

// ---- the toolstack's view

std::optional<std::string> SimStore::get(const std::string& path) const {
    auto it = nodes_.find(path);
    return it == nodes_.end() ? std::nullopt : std::optional(it->second.value);
}

std::vector<std::string> SimStore::list(const std::string& path) const {
    std::vector<std::string> names;
    std::string prefix = path == "/" ? path : path + "/";
    for (auto it = nodes_.upper_bound(prefix); it != nodes_.end() && it->first.starts_with(prefix);) {
        std::string name = it->first.substr(prefix.size());
        name.resize(std::min(name.size(), name.find('/')));
        it = nodes_.lower_bound(prefix + name + "0");
        if (names.empty() || names.back() != name) {
            names.push_back(std::move(name));
        }
    }
    return names;
}

void SimStore::set(const std::string& path, std::string value) {
    (void)write(0, nullptr, path, std::move(value));
    fire(path);
}

void SimStore::make_dir(const std::string& path, DomId owner, std::optional<DomId> reader) {
    Node node;
    node.owner = owner;
    if (reader) {
        node.perms[*reader] = 'r';
    }
    (void)write(0, nullptr, path, std::nullopt);
    put(nullptr, path, std::move(node));
    fire(path);
}

void SimStore::remove(const std::string& path) {
    if (erase(0, nullptr, path) == 0) {
        fire(path);
    }
}

// ---- requests

SimStore::Answer SimStore::list_part(const std::string& path, std::string_view offset) const {
    auto at = parse_number(offset, 1U << 30);
    if (!at) {
        return {EINVAL, ""};
    }
    std::string reply = std::to_string(nodes_.at(path).generation) + '\0';
    std::size_t passed = 0;
    for (const std::string& name : list(path)) {
        if (passed >= *at) {
            if (reply.size() + name.size() + 1 > store_payload_max) {
                return {0, std::move(reply)};
            }
            reply += name + '\0';
        }
        passed += name.size() + 1;
    }
    reply += '\0';
    return {0, std::move(reply)};
}

SimStore::Answer SimStore::end_transaction(Connection& c, std::uint32_t id, bool commit) {
    auto node = c.transactions.extract(id);
    if (node.empty()) {
        return {ENOENT, ""};
    }
    if (!commit) {
        return {0, std::string("OK\0", 3)};
    }
    Transaction& tx = node.mapped();
    for (const auto& [path, generation] : tx.seen) {
        const Node* now = find(nullptr, path);
        if ((now == nullptr ? 0 : now->generation) != generation) {
            return {EAGAIN, ""};
        }
    }
    for (auto& [path, change] : tx.changes) {
        if (change) {
            put(nullptr, path, std::move(*change));
        } else {
            nodes_.erase(path);
        }
    }
    for (const std::string& path : tx.fired) {
        fire(path);
    }
    return {0, std::string("OK\0", 3)};
}

SimStore::Answer SimStore::execute(Connection& c, const StoreHeader& header, std::string_view payload) {
    const std::string ok("OK\0", 3);
    auto parts = split_strings(payload);
    if (parts.empty()) {
        return {EINVAL, ""};
    }
    if (header.op == StoreOp::transaction_start) {
        c.transactions[next_transaction_];
        return {0, std::to_string(next_transaction_++) + '\0'};
    }
    if (header.op == StoreOp::transaction_end) {
        return end_transaction(c, header.transaction, parts[0] == "T");
    }
    Transaction* tx = nullptr;
    if (header.transaction != 0) {
        auto it = c.transactions.find(header.transaction);
        if (it == c.transactions.end()) {
            return {ENOENT, ""};
        }
        tx = &it->second;
    }
    bool relative = !parts[0].starts_with('/');
    std::string path = relative ? home_of(c.domain) + "/" + parts[0] : parts[0];
    if (tx != nullptr) {
        const Node* now = find(nullptr, path);
        tx->seen.try_emplace(path, now == nullptr ? 0 : now->generation);
    }
    const Node* node = find(tx, path);
    auto changed = [&](int err) -> Answer {
        if (err != 0) {
            return {err, ""};
        }
        if (tx != nullptr) {
            tx->fired.push_back(path);
        } else {
            fire(path);
        }
        return {0, ok};
    };
    switch (header.op) {
    case StoreOp::read:
    case StoreOp::directory:
    case StoreOp::directory_part:
        if (node == nullptr) {
            return {ENOENT, ""};
        }
        if (!allowed(c.domain, *node, 'r')) {
            return {EACCES, ""};
        }
        if (header.op == StoreOp::read) {
            return {0, node->value};
        }
        if (header.op == StoreOp::directory_part) {
            return list_part(path, parts.size() > 1 ? parts[1] : "");
        }
        {
            std::string reply;
            for (const std::string& name : list(path)) {
                reply += name + '\0';
            }
            return reply.size() > store_payload_max ? Answer{E2BIG, ""} : Answer{0, std::move(reply)};
        }
    case StoreOp::write:
        return changed(write(c.domain, tx, path, std::string(payload.substr(parts[0].size() + 1))));
    case StoreOp::mkdir:
        return changed(write(c.domain, tx, path, std::nullopt));
    case StoreOp::rm:
        return changed(erase(c.domain, tx, path));
    case StoreOp::unwatch:
        std::erase_if(c.watches, [&](const auto& entry) {
            return entry.first == path && parts.size() > 1 && entry.second.token == parts[1];
        });
        return {0, ok};
    case StoreOp::watch:
        if (parts.size() < 2) {
            return {EINVAL, ""};
        }
        c.watches.insert({path, Watch{parts[1], relative}});
        return {0, ok};
    default:
        return {ENOSYS, ""};
    }
}

void SimStore::queue(Connection& c, const StoreHeader& header, std::string_view payload) {
    append_header(c.out, header);
    c.out += payload;
    c.wake.set();
}

void SimStore::handle(Connection& c, const StoreHeader& header, std::string_view payload) {
    ++requests_;
    Answer a = execute(c, header, payload);
    StoreHeader reply = header;
    if (a.err != 0) {
        reply.op = StoreOp::error;
        a.payload = std::string(store_error_name(a.err)) + '\0';
    }
    reply.length = static_cast<std::uint32_t>(a.payload.size());
    queue(c, reply, a.payload);
    if (header.op == StoreOp::watch && a.err == 0) { // a new watch fires at once
        std::string event(payload);
        queue(c, {StoreOp::watch_event, 0, 0, static_cast<std::uint32_t>(event.size())}, event);
    }
}

Task<> SimStore::write_loop(Connection& c) {
    for (;;) {
        if (c.out.empty()) {
            if (auto ended = co_await c.wake.wait(); ended) {
                co_return;
            }
            continue;
        }
        std::string out = std::exchange(c.out, {});
        auto [ec, n] = co_await asio::async_write(c.link, asio::buffer(out), use_tuple);
        if (ec) {
            co_return;
        }
    }
}

Task<> SimStore::serve(std::shared_ptr<Connection> c) {
    co_await asio::this_coro::throw_if_cancelled(false);
    TaskGroup writer(executor_, log_);
    writer.spawn("simulated xenstored writer", write_loop(*c));
    for (;;) {
        const bool stop = is_cancelled(co_await asio::this_coro::cancellation_state);
        if (stop) {
            break;
        }
        std::array<char, store_header_size> raw{};
        auto [ec, n] = co_await asio::async_read(c->link, asio::buffer(raw), use_tuple);
        StoreHeader header = parse_header(raw);
        if (ec || header.length > store_payload_max) {
            break;
        }
        std::string payload(header.length, '\0');
        auto [body_ec, m] = co_await asio::async_read(c->link, asio::buffer(payload), use_tuple);
        if (body_ec) {
            break;
        }
        handle(*c, header, payload);
    }
    writer.cancel();
    co_await writer.join();
    c->link.close();
}

} // namespace vtpmd::xen
