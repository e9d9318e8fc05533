#include "hwtpm/drivers/tis.hpp"

#include "hwtpm/device.hpp"
#include "tpm/header.hpp"

#include <algorithm>

namespace vtpmd::hwtpm {

using namespace tis;

namespace {

constexpr std::chrono::microseconds shortest_pause{50};
constexpr std::chrono::microseconds longest_pause{5000};

Error gone() {
    return make_error(Errc::closed, "TIS: the registers read all ones: the TPM has vanished (powered down, or reset)");
}

} // namespace

Result<std::uint32_t> detect_tis(TisBus& bus) {
    // PTP section 6.6.2: TPM_INTERFACE_ID, bits 3:0: 0 FIFO, 1 CRB, 15 TIS 1.3 and older (where the register reads as
    // ones).
    constexpr std::uint32_t type_mask = 0xF;
    constexpr std::uint32_t type_crb = 1;
    constexpr std::uint32_t nothing = 0xFFFFFFFF;
    const std::uint32_t did_vid = bus.read32(reg_did_vid);
    const std::uint32_t interface = bus.read32(reg_interface_id);
    if (interface != nothing && (interface & type_mask) == type_crb) {
        return make_error(Errc::unsupported, "the TPM here speaks CRB, not TIS: use --tpm=device:/dev/tpm0");
    }
    if (did_vid == nothing || did_vid == 0 || bus.read8(reg_access) == 0xFF) {
        return make_error(Errc::not_found, "there is no TPM at this address (DID_VID reads {:#010x})", did_vid);
    }
    return did_vid;
}

bool TisPort::vanished() { return bus_.read8(at(reg_access)) == 0xFF && bus_.read8(at(reg_status)) == 0xFF; }

Result<void> TisPort::request_locality() {
    constexpr std::uint8_t granted = access_valid | access_active;
    auto held = [&] { return (bus_.read8(at(reg_access)) & granted) == granted; };
    if (vanished()) {
        return gone();
    }
    if (held()) {
        return {};
    }
    bus_.write8(at(reg_access), access_request);
    if (config_.seize) {
        bus_.write8(at(reg_access), access_seize);
    }
    const auto deadline = bus_.now() + timeout_a;
    for (auto pause = shortest_pause; !held(); pause = std::min(pause * 2, longest_pause)) {
        if (bus_.now() >= deadline) {
            if (vanished()) {
                return gone();
            }
            for (unsigned l = 0; l < localities; ++l) {
                if ((bus_.read8(l * locality_size + reg_access) & granted) == granted) {
                    return make_error(Errc::unavailable,
                                      "TIS: locality {} is not granted: locality {} holds the TPM (another driver?)",
                                      config_.locality, l);
                }
            }
            return make_error(Errc::unavailable, "TIS: locality {} is not granted within {} ms", config_.locality,
                              timeout_a.count());
        }
        bus_.pause(pause);
    }
    return {};
}

void TisPort::relinquish() noexcept { bus_.write8(at(reg_access), access_relinquish); }

void TisPort::relinquish_others() {
    constexpr std::uint8_t granted = access_valid | access_active;
    for (unsigned l = 0; l < localities; ++l) {
        const std::uint32_t other = l * locality_size + reg_access;
        const std::uint8_t value = bus_.read8(other);
        if (l != config_.locality && value != 0xFF && (value & granted) == granted) {
            bus_.write8(other, access_relinquish);
        }
    }
}

Result<void> TisPort::wait_status(std::uint8_t mask, std::uint8_t value, std::chrono::milliseconds limit,
                                  std::string_view what) {
    const auto deadline = bus_.now() + limit;
    for (auto pause = shortest_pause;; pause = std::min(pause * 2, longest_pause)) {
        const std::uint8_t status = bus_.read8(at(reg_status));
        if (status == 0xFF && vanished()) {
            return gone();
        }
        if ((status & mask) == value) {
            return {};
        }
        if (bus_.now() >= deadline) {
            return make_error(Errc::timed_out, "TIS: {} (waited {} ms, status {:#04x})", what, limit.count(), status);
        }
        bus_.pause(pause);
    }
}

/// A burst count of 0 means "not now"; 0xFFFF is what a bus without a device reads. Neither is progress.
Result<std::size_t> TisPort::burst() {
    const auto deadline = bus_.now() + timeout_d;
    for (auto pause = shortest_pause;; pause = std::min(pause * 2, longest_pause)) {
        const unsigned low = bus_.read8(at(reg_burst_low));
        const unsigned count = low | static_cast<unsigned>(bus_.read8(at(reg_burst_high))) << 8;
        if (count != 0 && count != 0xFFFF) {
            return count;
        }
        if (vanished()) {
            return gone();
        }
        if (bus_.now() >= deadline) {
            return make_error(Errc::timed_out, "TIS: the burst count stays {:#x}: no byte goes through", count);
        }
        bus_.pause(pause);
    }
}

Result<void> TisPort::make_ready() {
    if ((bus_.read8(at(reg_status)) & status_command_ready) != 0) {
        return {};
    }
    bus_.write8(at(reg_status), status_command_ready);
    auto ready = wait_status(status_command_ready, status_command_ready, timeout_b, "the TPM does not become ready");
    if (!ready && ready.error().code == Errc::timed_out) {
        return make_error(Errc::unavailable, "{}: busy", ready.error().message);
    }
    return ready;
}

Result<void> TisPort::send(ByteView command) {
    // EXPECT stands until the last byte: looked at before it and after it, a byte that was lost shows.
    for (std::size_t sent = 0; sent < command.size();) {
        auto room = burst();
        if (!room) {
            return room.error();
        }
        const std::size_t before_last = command.size() - 1;
        const std::size_t until = sent < before_last ? std::min(sent + *room, before_last) : command.size();
        for (; sent < until; ++sent) {
            bus_.write8(at(reg_fifo), std::to_integer<std::uint8_t>(command[sent]));
        }
        const bool more = sent < command.size();
        const std::uint8_t wanted = more ? status_valid | status_expect : status_valid;
        auto r = wait_status(status_valid | status_expect, wanted, timeout_c,
                             more ? "the TPM stopped expecting bytes before the last"
                                  : "the TPM still expects bytes after the last");
        if (!r) {
            return r;
        }
    }
    return {};
}

Result<void> TisPort::receive_into(MutByteView into) {
    for (std::size_t got = 0; got < into.size();) {
        constexpr std::uint8_t ready = status_valid | status_data_available;
        if (auto r = wait_status(ready, ready, timeout_c, "the answer ended early"); !r) {
            return r;
        }
        auto available = burst();
        if (!available) {
            return available.error();
        }
        for (std::size_t n = std::min(*available, into.size() - got); n > 0; --n) {
            into[got++] = std::byte{bus_.read8(at(reg_fifo))};
        }
    }
    return {};
}

Result<Bytes> TisPort::receive() {
    Result<Bytes> last = make_error(Errc::protocol, "TIS: no answer");
    for (int attempt = 0; attempt < transfer_attempts; ++attempt) {
        if (attempt > 0) {
            bus_.write8(at(reg_status), status_response_retry); // the TPM gives the same answer from its start
        }
        Bytes out(tpm_header_size);
        auto r = receive_into(out);
        const std::size_t size = tpm::peek_header(out).size;
        if (r && (size < tpm_header_size || size > tpm_buffer_limit)) {
            last = make_error(Errc::protocol, "TIS: an answer that says it has {} bytes (10 to {} are possible)", size,
                              tpm_buffer_limit);
            continue;
        }
        if (r) {
            out.resize(size);
            r = receive_into(MutByteView(out).subspan(tpm_header_size));
        }
        if (r) {
            r = wait_status(status_valid | status_data_available, status_valid, timeout_c,
                            "bytes are left over after the answer");
        }
        if (r) {
            return out;
        }
        last = r.error();
        if (r.error().code == Errc::closed) {
            break;
        }
    }
    return last;
}

void TisPort::abort(bool family20) {
    // TPM 2.0 ends a running command early for `cancel`; in both families command-ready makes it forget what it holds.
    if (family20) {
        bus_.write32(at(reg_status), status_cancel);
        constexpr std::uint8_t done = status_valid | status_data_available;
        (void)wait_status(done, done, timeout_b, "the TPM does not cancel");
    }
    bus_.write8(at(reg_status), status_command_ready);
}

Result<Bytes> TisPort::transmit(ByteView command, std::chrono::milliseconds limit) {
    const bool family20 = tpm::is_command_tag(TpmVersion::tpm20, tpm::peek_header(command).tag);
    if (command.size() < tpm_header_size || command.size() > tpm_buffer_limit) {
        return make_error(Errc::too_large, "a command of {} bytes", command.size());
    }
    Result<void> sent = make_error(Errc::protocol, "TIS: not sent");
    for (int attempt = 0; attempt < transfer_attempts; ++attempt) {
        sent = make_ready();
        if (sent) {
            sent = send(command);
        }
        if (sent || sent.error().code == Errc::closed || sent.error().code == Errc::unavailable) {
            break;
        }
        bus_.write8(at(reg_status), status_command_ready); // forgets the part it got; nothing was executed
    }
    if (!sent) {
        bus_.write8(at(reg_status), status_command_ready);
        return sent.error();
    }
    bus_.write8(at(reg_status), status_go);
    constexpr std::uint8_t done = status_valid | status_data_available;
    if (auto r = wait_status(done, done, limit, "no answer"); !r) {
        if (r.error().code != Errc::closed) {
            abort(family20);
        }
        return r.error();
    }
    auto answer = receive();
    bus_.write8(at(reg_status), status_command_ready); // idle again; on an error the answer is dropped
    return answer;
}

} // namespace vtpmd::hwtpm
