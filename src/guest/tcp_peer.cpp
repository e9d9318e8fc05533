#include "guest/tcp_peer.hpp"

#include <array>
#include <cerrno>
#include <cstring>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

namespace vtpmd::guest {

namespace {

struct Question {
    nlmsghdr header;
    inet_diag_req_v2 request;
};

Error not_told(std::string_view why) {
    return make_error(Errc::unavailable, "whose the connection is cannot be told ({}); --tcp-anyone does not ask", why);
}

/// As the peer's socket has it: what is the source there.
bool put_address(const sockaddr_storage& address, __be16& port, __be32 (&ip)[4], __u8& family) {
    family = static_cast<__u8>(address.ss_family);
    if (address.ss_family == AF_INET) {
        sockaddr_in in{};
        std::memcpy(&in, &address, sizeof in);
        port = in.sin_port;
        ip[0] = in.sin_addr.s_addr;
        return true;
    }
    if (address.ss_family == AF_INET6) {
        sockaddr_in6 in{};
        std::memcpy(&in, &address, sizeof in);
        port = in.sin6_port;
        std::memcpy(ip, &in.sin6_addr, sizeof in.sin6_addr);
        return true;
    }
    return false;
}

/// It may have said already that it sends no more.
bool is_connected(__u8 state) { return state == TCP_ESTABLISHED || state == TCP_FIN_WAIT1 || state == TCP_FIN_WAIT2; }

bool addresses_of(int connection, inet_diag_req_v2& request) {
    sockaddr_storage mine{};
    sockaddr_storage its{};
    socklen_t mine_size = sizeof mine;
    socklen_t its_size = sizeof its;
    __u8 other = 0;
    return ::getsockname(connection, reinterpret_cast<sockaddr*>(&mine), &mine_size) == 0 &&
           ::getpeername(connection, reinterpret_cast<sockaddr*>(&its), &its_size) == 0 &&
           put_address(its, request.id.idiag_sport, request.id.idiag_src, request.sdiag_family) &&
           put_address(mine, request.id.idiag_dport, request.id.idiag_dst, other);
}

} // namespace

Result<uid_t> tcp_peer_user(int diagnosis, int connection) {
    Question question{};
    question.header.nlmsg_len = sizeof question;
    question.header.nlmsg_type = SOCK_DIAG_BY_FAMILY;
    question.header.nlmsg_flags = NLM_F_REQUEST;
    question.request.sdiag_protocol = IPPROTO_TCP;
    question.request.idiag_states = ~0U;
    question.request.id.idiag_cookie[0] = question.request.id.idiag_cookie[1] = INET_DIAG_NOCOOKIE;
    if (!addresses_of(connection, question.request)) {
        return not_told("it is gone already");
    }
    alignas(nlmsghdr) std::array<char, 4096> answer{};
    if (::send(diagnosis, &question, sizeof question, 0) != static_cast<ssize_t>(sizeof question)) {
        return not_told(std::generic_category().message(errno));
    }
    const ssize_t got = ::recv(diagnosis, answer.data(), answer.size(), MSG_DONTWAIT); // it is there already
    nlmsghdr header{};
    if (got < static_cast<ssize_t>(sizeof header)) {
        return not_told("the kernel does not answer");
    }
    std::memcpy(&header, answer.data(), sizeof header);
    if (header.nlmsg_type == NLMSG_ERROR && got >= static_cast<ssize_t>(sizeof header + sizeof(int))) {
        int error = 0;
        std::memcpy(&error, answer.data() + sizeof header, sizeof error);
        return not_told(error == -ENOENT ? "it is gone already, or from another network namespace, or this "
                                           "kernel has no tcp_diag"
                                         : std::generic_category().message(-error));
    }
    inet_diag_msg peer{};
    if (header.nlmsg_type != SOCK_DIAG_BY_FAMILY || got < static_cast<ssize_t>(sizeof header + sizeof peer)) {
        return not_told("the kernel says something else");
    }
    std::memcpy(&peer, answer.data() + sizeof header, sizeof peer);
    // A socket that was closed has no inode, and counts as root's; the kernel may find one that listens in its place.
    inet_diag_req_v2 still{};
    if (peer.idiag_inode == 0 || !is_connected(peer.idiag_state) ||
        peer.id.idiag_dport != question.request.id.idiag_dport || !addresses_of(connection, still)) {
        return not_told("it was closed already");
    }
    return Result<uid_t>(uid_t{peer.idiag_uid});
}

TcpGate::TcpGate(TcpPeers peers)
    : peers_(std::move(peers))
    , diagnosis_(peers_.anyone ? -1 : ::socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, NETLINK_SOCK_DIAG)) {
    peers_.users.insert({uid_t{0}, ::geteuid()});
}

Result<void> TcpGate::admits(int connection) const {
    if (peers_.anyone) {
        return {};
    }
    if (!diagnosis_) {
        return not_told("this kernel has no NETLINK_SOCK_DIAG, or it is forbidden");
    }
    auto user = tcp_peer_user(diagnosis_.get(), connection);
    if (!user) {
        return user.error();
    }
    if (!peers_.users.contains(*user)) {
        return make_error(Errc::permission,
                          "user {} may not connect by TCP; --tcp-user={} lets that user, --tcp-anyone all", *user,
                          *user);
    }
    return {};
}

} // namespace vtpmd::guest
