#include "scripted_device.hpp"

#include "tpm/header.hpp"

#include <algorithm>

namespace vtpmd::fakes {

bool BusRecord::contains(ByteView needle) {
    std::lock_guard lock(mutex);
    return std::any_of(traffic.begin(), traffic.end(), [&](const Bytes& b) {
        return std::search(b.begin(), b.end(), needle.begin(), needle.end()) != b.end();
    });
}

std::size_t BusRecord::count(std::uint32_t command_code) {
    std::lock_guard lock(mutex);
    std::size_t n = 0;
    for (std::size_t i = 0; i < traffic.size(); i += 2) { // commands and answers alternate
        n += tpm::peek_header(traffic[i]).code == command_code ? 1 : 0;
    }
    return n;
}

Result<Bytes> RecordingDevice::transmit(ByteView command, std::chrono::milliseconds limit) {
    std::function<Result<void>(ByteView)> fault;
    {
        std::lock_guard lock(record_.mutex);
        fault = record_.fault;
    }
    if (fault) {
        if (auto r = fault(command); !r) {
            return r.error();
        }
    }
    auto answer = inner_->transmit(command, limit);
    std::lock_guard lock(record_.mutex);
    record_.traffic.push_back(to_bytes(command));
    record_.traffic.push_back(answer ? *answer : Bytes{});
    return answer;
}

Result<void> RecordingDevice::claim() {
    {
        std::lock_guard lock(record_.mutex);
        ++record_.claims;
    }
    return inner_->claim();
}

void RecordingDevice::release() noexcept {
    std::lock_guard lock(record_.mutex);
    ++record_.releases;
    inner_->release();
}

} // namespace vtpmd::fakes
