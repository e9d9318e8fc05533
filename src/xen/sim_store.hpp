// A xenstored in memory, for tests and benchmarks off Xen: speaks the wire protocol over socket pairs, with
// transactions, watches and permissions by domain, and can die and come back.
#pragma once

#include "util/fd.hpp"
#include "util/task_group.hpp"
#include "util/wake.hpp"
#include "xen/store_wire.hpp"
#include "xen/types.hpp"

#include <list>
#include <map>
#include <memory>
#include <string>

namespace vtpmd::xen {

class SimStore {
  public:
    SimStore(asio::any_io_executor executor, const Log& log);
    ~SimStore();

    /// The client's end of a new connection of this domain's. Errc::unavailable while the store is down. Safe from
    /// other threads than the executor's as long as the store lives.
    Result<UniqueFd> dial(DomId domain);
    /// Closes every connection (xenstored died); the tree stays.
    Task<> down();
    void up() { down_ = false; }

    // The toolstack's view: domain 0, absolute paths, at once.
    [[nodiscard]] std::optional<std::string> get(const std::string& path) const;
    [[nodiscard]] std::vector<std::string> list(const std::string& path) const;
    void set(const std::string& path, std::string value);
    /// Makes `path`, owned by `owner`, readable to `reader` too; what is created below inherits that.
    void make_dir(const std::string& path, DomId owner, std::optional<DomId> reader = std::nullopt);
    void remove(const std::string& path);
    /// Requests served, of all connections.
    [[nodiscard]] std::uint64_t requests() const noexcept { return requests_; }

  private:
    struct Node {
        std::string value;
        DomId owner = 0;
        char others = 'n';
        std::map<DomId, char> perms;
        std::uint64_t generation = 0;
    };
    struct Watch {
        std::string token;
        bool relative;
    };
    struct Transaction {
        std::map<std::string, std::optional<Node>> changes;
        std::map<std::string, std::uint64_t> seen;
        std::vector<std::string> fired;
    };
    struct Connection {
        Connection(const asio::any_io_executor& executor, DomId id, int fd)
            : domain(id)
            , link(executor, asio::local::stream_protocol(), fd)
            , wake(executor) {}
        DomId domain;
        asio::local::stream_protocol::socket link; ///< no SIGPIPE from a client that left
        std::string out;
        Wake wake;
        std::multimap<std::string, Watch> watches; ///< by path: a change looks at those above it, not at all
        std::map<std::uint32_t, Transaction> transactions;
    };
    /// What a request comes to: a reply's payload, or an errno.
    struct Answer {
        int err = 0;
        std::string payload;
    };

    Task<> serve(std::shared_ptr<Connection> connection);
    Task<> write_loop(Connection& connection);
    void handle(Connection& c, const StoreHeader& header, std::string_view payload);
    Answer execute(Connection& c, const StoreHeader& header, std::string_view payload);
    Answer end_transaction(Connection& c, std::uint32_t id, bool commit);
    Answer list_part(const std::string& path, std::string_view offset) const;

    [[nodiscard]] const Node* find(const Transaction* tx, const std::string& path) const;
    [[nodiscard]] bool allowed(DomId domain, const Node& node, char access) const;
    /// The nearest node at or above the path.
    [[nodiscard]] const Node* nearest(const Transaction* tx, std::string path) const;
    int write(DomId domain, Transaction* tx, const std::string& path, std::optional<std::string> value);
    int erase(DomId domain, Transaction* tx, const std::string& path);
    void put(Transaction* tx, const std::string& path, Node node);
    void fire(const std::string& path);
    static void queue(Connection& c, const StoreHeader& header, std::string_view payload);

    asio::any_io_executor executor_;
    const Log& log_;

    std::map<std::string, Node> nodes_;
    std::list<std::weak_ptr<Connection>> connections_;
    std::uint64_t generation_ = 1;
    std::uint32_t next_transaction_ = 1;
    std::uint64_t requests_ = 0;
    bool down_ = false;
    TaskGroup tasks_;
};

} // namespace vtpmd::xen
