#ifdef VTPMD_HAVE_XEN

#define __XEN_TOOLS__ 1 // NOLINT: asks the headers for the newest interface

#include "xen/flask.hpp"

#include "util/fd.hpp"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
extern "C" {
#include <xencall.h>
}
#include <xen/xen.h>
#include <xen/xsm/flask_op.h>

namespace vtpmd::xen {

namespace {

constexpr std::size_t label_limit = 1024;

} // namespace

/// The hypercall interface, and memory that a hypercall may be given.
struct FlaskLabels::Calls {
    explicit Calls(xencall_handle* h)
        : handle(h)
        , op(static_cast<xen_flask_op_t*>(xencall_alloc_buffer(h, sizeof(xen_flask_op_t))))
        , text(static_cast<char*>(xencall_alloc_buffer(h, label_limit))) {}
    Calls(const Calls&) = delete;
    Calls& operator=(const Calls&) = delete;
    ~Calls() {
        if (op != nullptr) {
            xencall_free_buffer(handle, op);
        }
        if (text != nullptr) {
            xencall_free_buffer(handle, text);
        }
        xencall_close(handle);
    }
    void begin(std::uint32_t command) const {
        std::memset(op, 0, sizeof *op);
        op->cmd = command;
        op->interface_version = XEN_FLASK_INTERFACE_VERSION;
    }
    /// 0, or the error's number.
    [[nodiscard]] int call() const {
        return xencall1(handle, __HYPERVISOR_xsm_op, reinterpret_cast<std::uintptr_t>(op)) < 0 ? errno : 0;
    }
    xencall_handle* handle;
    xen_flask_op_t* op;
    char* text;
};

FlaskLabels::FlaskLabels() = default;
FlaskLabels::~FlaskLabels() = default;

Result<std::optional<std::string>> FlaskLabels::of_peer(Port port) {
    if (absent_) {
        return std::optional<std::string>{};
    }
    if (!calls_) {
        constexpr const char* device = "/dev/xen/privcmd";
        // Tried first, since the library complains on standard error.
        UniqueFd allowed(::open(device, O_RDWR | O_CLOEXEC));
        xencall_handle* handle = allowed ? xencall_open(nullptr, 0) : nullptr;
        if (handle == nullptr) {
            return errno_error(errno, fmt::format("{}, for the XSM label of a domain", device));
        }
        calls_ = std::make_unique<Calls>(handle);
        if (calls_->op == nullptr || calls_->text == nullptr) {
            calls_.reset();
            return errno_error(ENOMEM, "memory for a hypercall");
        }
    }
    calls_->begin(FLASK_GET_PEER_SID);
    calls_->op->u.peersid.evtchn = port;
    int error = calls_->call();
    if (error == ENOSYS || error == EOPNOTSUPP) {
        absent_ = true;
        return std::optional<std::string>{};
    }
    if (error != 0) {
        return errno_error(error, fmt::format("XSM label of the peer of event channel {}", port));
    }
    const std::uint32_t sid = calls_->op->u.peersid.sid;
    calls_->begin(FLASK_SID_TO_CONTEXT);
    calls_->op->u.sid_context.sid = sid;
    calls_->op->u.sid_context.size = label_limit;
    set_xen_guest_handle(calls_->op->u.sid_context.context, calls_->text);
    if (error = calls_->call(); error != 0) {
        return errno_error(error, fmt::format("XSM label {} of the peer of event channel {}", sid, port));
    }
    return std::optional(std::string(calls_->text, ::strnlen(calls_->text, label_limit)));
}

} // namespace vtpmd::xen

#endif
