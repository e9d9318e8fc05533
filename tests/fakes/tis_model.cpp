#include "tis_model.hpp"

#include "tpm/header.hpp"

#include <algorithm>

namespace vtpmd::fakes {

using namespace hwtpm::tis;

namespace {
constexpr std::uint32_t reg_mask = locality_size - 1;
constexpr std::size_t lost_after = 5;
} // namespace

bool TisModel::take(int& count) {
    if (count > 0) {
        --count;
        return true;
    }
    return false;
}

bool TisModel::expects() const {
    if (state_ == State::ready) {
        return true;
    }
    if (state_ != State::reception || expect_lost_) {
        return false;
    }
    return command_.size() < tpm::header_size || command_.size() < tpm::peek_header(command_).size;
}

void TisModel::settle() {
    if (state_ != State::execution) {
        return;
    }
    if (cancelled_ && !faults.ignores_cancel) {
        answer_ = tpm::error_response(TpmVersion::tpm20, tpm::Refusal::canceled);
    } else if (faults.hangs || now_ < done_at_) {
        return;
    } else {
        answer_ = tpm_(command_, static_cast<std::uint8_t>(holder));
    }
    state_ = State::completion;
    given_ = 0;
    cut_ = take(faults.short_answer) ? 3 : 0;
    garbled_ = take(faults.wrong_size);
}

std::uint8_t TisModel::status() {
    settle();
    std::uint8_t out = status_valid;
    if (state_ == State::ready) {
        out |= status_command_ready;
    }
    if (state_ == State::reception && expects()) {
        out |= status_expect;
    }
    if (state_ == State::completion && given_ + cut_ < answer_.size()) {
        out |= status_data_available;
    }
    return out;
}

std::uint8_t TisModel::read8(std::uint32_t offset) {
    if (faults.vanished) {
        return 0xFF;
    }
    const int locality = static_cast<int>(offset / locality_size);
    switch (offset & reg_mask) {
    case reg_access:
        return static_cast<std::uint8_t>(access_valid | (holder == locality ? access_active : 0));
    case reg_status:
        return holder == locality ? status() : 0xFF;
    case reg_burst_low:
    case reg_burst_high: {
        const bool low = (offset & reg_mask) == reg_burst_low;
        if (faults.stuck_burst_zero > 0) {
            faults.stuck_burst_zero -= low ? 0 : 1;
            return 0;
        }
        if (faults.stuck_burst_ones > 0) {
            faults.stuck_burst_ones -= low ? 0 : 1;
            return 0xFF;
        }
        // While it gives an answer, no more than it has.
        const auto left = static_cast<unsigned>(answer_.size() - std::min(answer_.size(), given_ + cut_));
        const unsigned count = state_ == State::completion ? std::min(burst, left) : burst;
        return static_cast<std::uint8_t>(low ? count : count >> 8);
    }
    case reg_fifo:
        return holder == locality ? give_byte() : 0xFF;
    default:
        return 0;
    }
}

std::uint32_t TisModel::read32(std::uint32_t offset) {
    if (faults.vanished) {
        return 0xFFFFFFFF;
    }
    switch (offset & reg_mask) {
    case reg_did_vid:
        return 0x0001'1014;
    case reg_interface_id:
        return faults.crb ? 0x1 : 0xFFFFFFFF;
    default:
        return read8(offset);
    }
}

void TisModel::write8(std::uint32_t offset, std::uint8_t value) {
    if (faults.vanished) {
        return;
    }
    const int locality = static_cast<int>(offset / locality_size);
    switch (offset & reg_mask) {
    case reg_access:
        if (value == access_relinquish && holder == locality) {
            ++relinquishes;
            holder = -1;
            state_ = State::idle;
        }
        if (value == access_request) {
            ++requests;
            holder = holder < 0 && !faults.refuses_locality ? locality : holder;
        }
        if (value == access_seize && locality > holder) {
            holder = locality;
        }
        break;
    case reg_status:
        if (holder == locality) {
            write_status(value);
        }
        break;
    case reg_fifo:
        if (holder == locality) {
            take_byte(value);
        }
        break;
    default:
        break;
    }
}

void TisModel::write32(std::uint32_t offset, std::uint32_t value) {
    if ((offset & reg_mask) == reg_status && value == status_cancel) {
        ++cancels;
        cancelled_ = true;
        return;
    }
    write8(offset, static_cast<std::uint8_t>(value));
}

void TisModel::write_status(std::uint8_t value) {
    settle();
    if (value == status_command_ready) {
        if (state_ == State::ready || take(faults.never_ready)) {
            return;
        }
        // In the middle of something it aborts; the host then sees idle, and asks again. From idle it becomes ready.
        state_ = State::ready;
        command_.clear();
        answer_.clear();
        cancelled_ = expect_lost_ = byte_lost_ = false;
    }
    if (value == status_go && state_ == State::reception && !expects() && !expect_lost_) {
        ++commands;
        state_ = State::execution;
        done_at_ = now_ + execution;
    }
    if (value == status_response_retry && state_ == State::completion) {
        ++retries;
        given_ = cut_ = 0;
        garbled_ = take(faults.wrong_size);
        cut_ = take(faults.short_answer) ? 3 : 0;
    }
}

void TisModel::take_byte(std::uint8_t value) {
    if (state_ == State::ready) {
        state_ = State::reception;
        command_.clear();
    }
    if (state_ != State::reception || !expects()) {
        return;
    }
    if (command_.size() == lost_after && take(faults.lost_expect)) {
        expect_lost_ = true;
        return;
    }
    if (command_.size() == lost_after && !byte_lost_ && take(faults.lost_byte)) {
        byte_lost_ = true;
        return;
    }
    command_.push_back(std::byte{value});
}

std::uint8_t TisModel::give_byte() {
    if (state_ != State::completion || given_ + cut_ >= answer_.size()) {
        return 0xFF;
    }
    const std::size_t place = given_++;
    constexpr std::size_t size_field = 2;
    return garbled_ && place == size_field ? 0xEE : std::to_integer<std::uint8_t>(answer_[place]);
}

} // namespace vtpmd::fakes
