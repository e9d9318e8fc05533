#include "hwtpm/tcti.hpp"

#include "tpm/cost.hpp"
#include "tpm/header.hpp"
#include "util/secret_bytes.hpp"

#include <algorithm>

namespace vtpmd::hwtpm {

namespace {
constexpr std::uint64_t tcti_magic = 0x7674706d64544354; // any number of one's own
constexpr std::uint32_t tcti_version = 2;
} // namespace

std::chrono::milliseconds time_limit(ByteView command) noexcept {
    using namespace std::chrono_literals;
    // The PC Client profiles give key generation no upper bound; five minutes is what Linux waits.
    const TpmVersion version =
        tpm::is_command_tag(TpmVersion::tpm20, tpm::peek_header(command).tag) ? TpmVersion::tpm20 : TpmVersion::tpm12;
    return tpm::cost(version, command) == tpm::Cost::fast ? 60s : 300s;
}

DeviceTcti::DeviceTcti(TpmDevice& device)
    : device_(device) {
    context_.common.v1.magic = tcti_magic;
    context_.common.v1.version = tcti_version;
    context_.common.v1.transmit = &DeviceTcti::transmit;
    context_.common.v1.receive = &DeviceTcti::receive;
    context_.common.v1.finalize = [](TSS2_TCTI_CONTEXT*) {};
    context_.common.v1.cancel = &DeviceTcti::cancel;
    context_.common.v1.getPollHandles = [](TSS2_TCTI_CONTEXT*, TSS2_TCTI_POLL_HANDLE*, size_t*) -> TSS2_RC {
        return TSS2_TCTI_RC_NOT_IMPLEMENTED;
    };
    // The device claims its locality by itself, once a batch.
    context_.common.v1.setLocality = [](TSS2_TCTI_CONTEXT*, uint8_t) -> TSS2_RC {
        return TSS2_TCTI_RC_NOT_IMPLEMENTED;
    };
    context_.common.makeSticky = [](TSS2_TCTI_CONTEXT*, TPM2_HANDLE*, uint8_t) -> TSS2_RC {
        return TSS2_TCTI_RC_NOT_IMPLEMENTED;
    };
    context_.self = this;
}

TSS2_TCTI_CONTEXT* DeviceTcti::context() noexcept { return reinterpret_cast<TSS2_TCTI_CONTEXT*>(&context_); }

DeviceTcti& DeviceTcti::of(TSS2_TCTI_CONTEXT* context) noexcept { return *reinterpret_cast<Context*>(context)->self; }

TSS2_RC DeviceTcti::transmit(TSS2_TCTI_CONTEXT* context, size_t size, uint8_t const* command) {
    if (context == nullptr || command == nullptr) {
        return TSS2_TCTI_RC_BAD_REFERENCE;
    }
    DeviceTcti& self = of(context);
    if (size < tpm_header_size || size > tpm_buffer_limit) {
        return TSS2_TCTI_RC_BAD_VALUE;
    }
    if (!self.command_.empty() || !self.response_.empty()) {
        return TSS2_TCTI_RC_BAD_SEQUENCE;
    }
    self.command_ = to_bytes(view_of(command, size));
    return TSS2_RC_SUCCESS;
}

TSS2_RC DeviceTcti::receive(TSS2_TCTI_CONTEXT* context, size_t* size, uint8_t* response, int32_t /*timeout*/) {
    if (context == nullptr || size == nullptr) {
        return TSS2_TCTI_RC_BAD_REFERENCE;
    }
    DeviceTcti& self = of(context);
    if (self.response_.empty()) {
        if (self.command_.empty()) {
            return TSS2_TCTI_RC_BAD_SEQUENCE;
        }
        auto answer = self.device_.transmit(self.command_, time_limit(self.command_));
        cleanse(self.command_);
        self.command_.clear();
        if (!answer) {
            self.failure_ = answer.error();
            return TSS2_TCTI_RC_IO_ERROR;
        }
        self.failure_.reset();
        self.response_ = std::move(*answer);
    }
    if (response == nullptr) {
        *size = self.response_.size();
        return TSS2_RC_SUCCESS;
    }
    if (*size < self.response_.size()) {
        *size = self.response_.size();
        return TSS2_TCTI_RC_INSUFFICIENT_BUFFER;
    }
    *size = self.response_.size();
    std::copy(self.response_.begin(), self.response_.end(), reinterpret_cast<std::byte*>(response));
    self.response_.clear();
    return TSS2_RC_SUCCESS;
}

TSS2_RC DeviceTcti::cancel(TSS2_TCTI_CONTEXT* context) {
    if (context == nullptr) {
        return TSS2_TCTI_RC_BAD_REFERENCE;
    }
    of(context).device_.cancel();
    return TSS2_RC_SUCCESS;
}

} // namespace vtpmd::hwtpm
