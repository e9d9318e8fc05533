#include "instance/links/manager_link.hpp"

#include "proto/link/stream_channel.hpp"

#include <fcntl.h>

namespace vtpmd::instance {

namespace {

struct Inherited {
    std::unique_ptr<proto::Channel> channel;
};

Task<Result<std::unique_ptr<proto::Channel>>> connect(std::shared_ptr<Inherited> inherited, std::string path,
                                                      Clock& clock) {
    if (inherited->channel) {
        co_return std::move(inherited->channel);
    }
    if (path.empty()) {
        co_return make_error(Errc::permission,
                             "the socket inherited from the manager broke, and --manager names no other way");
    }
    auto channel = co_await proto::connect_unix(std::move(path), clock);
    if (!channel && (channel.error().code == Errc::not_found || channel.error().code == Errc::unavailable)) {
        Error e = std::move(channel).error();
        e.message += "; start the manager (systemctl start vtpmd-manager), or name its socket with --manager";
        co_return e;
    }
    co_return channel;
}

} // namespace

Result<proto::ManagerClient::Connect> manager_connector(ManagerAddress address, asio::any_io_executor executor,
                                                        Clock& clock) {
    auto inherited = std::make_shared<Inherited>();
    if (address.inherited_fd) {
        (void)::fcntl(*address.inherited_fd, F_SETFD, FD_CLOEXEC);
        auto channel = proto::adopt_unix(std::move(executor), UniqueFd(*address.inherited_fd), clock,
                                         "the socket inherited from the manager");
        if (!channel) {
            return in_context(std::move(channel).error(), "--manager");
        }
        inherited->channel = std::move(*channel);
    }
    return proto::ManagerClient::Connect(
        [inherited, path = std::move(address.path), &clock] { return connect(inherited, path, clock); });
}

std::optional<proto::ManagerClient::Connect> question_connector(const ManagerAddress& address, Clock& clock) {
    if (address.path.empty() || address.xen_handle) {
        return std::nullopt;
    }
    return proto::ManagerClient::Connect([path = address.path, &clock] { return proto::connect_unix(path, clock); });
}

} // namespace vtpmd::instance
