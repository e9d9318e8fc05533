// An engine, an image and a manager that keep a single number, the state of a TPM that can only count, and fail on demand.
#pragma once

#include "engine/engine.hpp"
#include "proto/link/client.hpp"
#include "store/state_image.hpp"
#include "tpm/header.hpp"
#include "util/wire.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <functional>
#include <set>
#include <thread>

namespace vtpmd::fakes {

/// Every await of the fakes passes here: tests count the points and do something at one of them.
class Points {
  public:
    explicit Points(asio::any_io_executor executor)
        : executor_(std::move(executor)) {}
    Task<> pass() {
        const std::size_t here = passed++;
        if (at) {
            at(here);
        }
        co_await asio::post(executor_, use_tuple);
    }
    std::size_t passed = 0;
    std::function<void(std::size_t)> at;

  private:
    asio::any_io_executor executor_;
};

inline SecretBytes number_blob(std::uint64_t n) {
    WireWriter w;
    w.be64(n);
    return SecretBytes(w.view());
}
inline std::uint64_t number_in(ByteView blob) {
    WireReader r(blob);
    return r.be64();
}

/// The number of a save, as its key and as the hash of its slot.
inline SecretBytes fake_key(std::uint64_t save) {
    SecretBytes key(store::hash_key_size);
    const SecretBytes number = number_blob(save);
    std::copy_n(number.data(), number.size(), key.data());
    std::copy_n(number.data(), number.size(), key.data() + proto::hash_key_part);
    return key;
}

class FakeEngine final : public Engine {
  public:
    static constexpr std::uint32_t read = 0x17A;     ///< answers with the number
    static constexpr std::uint32_t add = 0x134;      ///< adds one, answers with the number
    static constexpr std::uint32_t slow_add = 0x153; ///< the same, on the worker; ends early when cancelled
    static constexpr std::uint32_t startup = 0x144;
    static constexpr std::uint32_t shutdown_order = 0x145;

    static Bytes command(std::uint32_t code) {
        WireWriter w;
        w.be16(0x8001).be32(12).be32(code).be16(0);
        return w.take();
    }

    Result<void> power_on(const EngineState& state) override {
        if (fail_power_on) {
            return make_error(Errc::corrupt, "fake: refused");
        }
        ++power_ons;
        on_ = true;
        registers = state.volatile_state.empty() ? 0 : number_in(state.volatile_state.view());
        staged_ = state.permanent.empty();
        value = staged_ ? 1 : number_in(state.permanent.view());
        return {};
    }
    void power_off() override { on_ = false; }
    [[nodiscard]] bool running() const override { return on_; }
    Bytes execute(ByteView command, std::uint8_t locality) override {
        const std::uint32_t code = tpm::peek_header(command).code;
        last_locality = locality;
        executed.push_back(code);
        if (code == slow_add) {
            ran_on = std::this_thread::get_id();
            in_slow = true;
            while (hold_slow && !cancelled) {
                std::this_thread::sleep_for(std::chrono::milliseconds(1));
            }
            in_slow = false;
            if (cancelled.exchange(false)) {
                return tpm::error_response(TpmVersion::tpm20, tpm::Refusal::canceled);
            }
        }
        if (code == add || code == slow_add || code == shutdown_order) {
            value += code == shutdown_order ? 0 : 1;
            staged_ = true;
        }
        staged_ = staged_ || (code == startup && startup_counts);
        WireWriter w;
        w.be16(0x8001).be32(18).be32(0).be64(value);
        return w.take();
    }
    void cancel() override { cancelled = true; }
    std::optional<EngineState> take_staged() override {
        if (!staged_) {
            return std::nullopt;
        }
        staged_ = false;
        EngineState s;
        s.permanent = number_blob(value);
        return s;
    }
    [[nodiscard]] bool has_staged() const override { return staged_; }
    void staged_is_durable() override { ++durable_calls; }
    void staged_failed() override { staged_ = true; }
    Result<EngineState> snapshot() override {
        EngineState s;
        s.permanent = number_blob(value);
        s.volatile_state = number_blob(registers);
        return s;
    }
    [[nodiscard]] TpmVersion version() const override { return TpmVersion::tpm20; }
    Result<void> resume(const SecretBytes& volatile_state) override {
        registers = number_in(volatile_state.view());
        return {};
    }
    [[nodiscard]] std::string failure() const override { return {}; }
    BufferSize buffer_size(std::uint32_t) override { return {4096, 2808, 4096}; }
    [[nodiscard]] std::string info(unsigned) const override { return R"({"fake":true})"; }
    [[nodiscard]] bool established() const override { return false; }
    Result<void> reset_established(std::uint8_t) override { return {}; }
    Result<void> hash_start() override { return {}; }
    Result<void> hash_data(ByteView) override { return {}; }
    Result<void> hash_end() override { return {}; }

    std::uint64_t value = 0;
    std::uint64_t registers = 0; ///< volatile
    unsigned power_ons = 0, durable_calls = 0;
    bool fail_power_on = false;
    bool startup_counts = false; ///< it is a change of the permanent state
    std::uint8_t last_locality = 255;
    std::vector<std::uint32_t> executed;
    std::thread::id ran_on;
    std::atomic<bool> cancelled = false, hold_slow = false, in_slow = false;

  private:
    bool on_ = false, staged_ = false;
};

/// Two slots; a key is the number of the save, 64 bytes long.
class FakeImage final : public store::StateImage {
  public:
    explicit FakeImage(Points& points)
        : points_(points) {}

    Task<Result<SecretBytes>> load(ByteView key) override {
        co_await points_.pass();
        for (const Slot& s : slots) {
            if (s.save != 0 && s.save == number_in(key)) {
                co_return SecretBytes(s.blob.view());
            }
        }
        co_return make_error(Errc::rollback, "fake: no such slot");
    }
    Task<Result<SecretBytes>> prepare(ByteView state) override {
        if (pending) {
            co_return make_error(Errc::busy, "fake: a save is pending");
        }
        ++prepares;
        Slot& slot = slots[1 - valid];
        slot = Slot{}; // being overwritten
        co_await points_.pass();
        if (fail_prepare) {
            co_return make_error(*fail_prepare, "fake: writing the slot");
        }
        slot.save = ++saves;
        slot.blob = SecretBytes(state);
        co_await points_.pass();
        pending = true;
        co_return fake_key(slot.save);
    }
    Task<Result<void>> accept() override {
        valid = 1 - valid;
        pending = false;
        live = true;
        co_await points_.pass();
        if (fail_accept) {
            co_return make_error(*fail_accept, "fake: marking");
        }
        co_return Result<void>{};
    }
    void reject() override { pending = false; }
    /// Whoever loads with the pending key finds what is valid now.
    Task<Result<void>> withdraw() override {
        co_await points_.pass();
        if (fail_withdraw) {
            co_return make_error(*fail_withdraw, "fake: withdrawing");
        }
        withdrawn = {slots[1 - valid].save, slots[valid].save};
        pending = false;
        co_return Result<void>{};
    }
    Task<Result<bool>> holds(ByteView slot_hash) override {
        co_await points_.pass();
        co_return std::ranges::any_of(slots,
                                      [&](const Slot& s) { return s.save != 0 && s.save == number_in(slot_hash); });
    }
    Task<Result<bool>> give_up(ByteView slot_hash) override { return holds(slot_hash); }
    [[nodiscard]] bool had_state() const override { return live; }
    [[nodiscard]] const store::ImageIdentity& identity() const override { return identity_; }
    [[nodiscard]] const std::string& path() const override { return path_; }

    /// The state that a restart would find with this key; nullptr: none.
    [[nodiscard]] const SecretBytes* stored(std::uint64_t save) const {
        save = save != 0 && save == withdrawn.first ? withdrawn.second : save;
        for (const Slot& s : slots) {
            if (save != 0 && s.save == save) {
                return &s.blob;
            }
        }
        return nullptr;
    }

    struct Slot {
        std::uint64_t save = 0;
        SecretBytes blob;
    };
    std::array<Slot, 2> slots;
    unsigned valid = 0;
    std::uint64_t saves = 0;
    unsigned prepares = 0;
    bool pending = false, live = false;
    std::optional<Errc> fail_prepare, fail_accept, fail_withdraw;
    std::pair<std::uint64_t, std::uint64_t> withdrawn; ///< a save, and the one that counts instead

  private:
    Points& points_;
    store::ImageIdentity identity_;
    std::string path_ = "fake.img";
};

class FakeManager final : public proto::ManagerClient {
  public:
    enum class Fault { none, refuses, fails_after, lost_request, lost_answer, superseded };

    explicit FakeManager(Points& points)
        : points_(points) {}

    Task<Result<proto::HelloReply>> hello() override {
        co_await points_.pass();
        if (hello_error) {
            co_return *hello_error;
        }
        co_return reply;
    }
    using ManagerClient::save_hash_key;
    Task<Result<void>> save_hash_key(ByteView key, Interruption* by) override {
        Task<Result<void>> saving = save(key);
        if (by != nullptr) {
            saving = interruptible(*by, "fake", std::move(saving));
        }
        co_return co_await std::move(saving);
    }
    Task<Result<void>> save(ByteView key) {
        const std::uint64_t number = number_in(key);
        offered.push_back(number);
        co_await points_.pass();
        if (away) {
            co_await away();
        }
        if (fault == Fault::refuses) {
            co_return make_error(Errc::io, "fake: the manager's disk failed");
        }
        if (fault == Fault::superseded) {
            co_return make_error(Errc::rollback, "fake: another has saved since");
        }
        if (fault == Fault::lost_request) {
            co_return make_error(Errc::unavailable, "fake: no answer");
        }
        record = number;
        kept_ = SecretBytes(key);
        co_await points_.pass();
        if (fault == Fault::lost_answer) {
            co_return make_error(Errc::unavailable, "fake: no answer");
        }
        if (fault == Fault::fails_after) {
            co_return make_error(Errc::io, "fake: the manager's disk failed, after the record");
        }
        co_return Result<void>{};
    }
    Task<Result<std::optional<SecretBytes>>> load_hash_key() override {
        co_await points_.pass();
        if (fault == Fault::lost_request || fault == Fault::lost_answer) {
            co_return make_error(Errc::unavailable, "fake: no answer");
        }
        if (record == 0) {
            co_return std::optional<SecretBytes>{};
        }
        co_return std::optional<SecretBytes>(key_on_record());
    }
    Task<Result<proto::BootHash>> boot_hash() override { co_return proto::BootHash{}; }
    Task<Result<void>> handed_over() override {
        co_await points_.pass();
        if (fault != Fault::none) {
            co_return make_error(fault == Fault::refuses ? Errc::io : Errc::unavailable, "fake: not handed over");
        }
        gone = true;
        co_return Result<void>{};
    }
    Task<Result<proto::QuoteReply>> quote(proto::QuoteRequest request) override {
        quotes_asked.push_back(std::move(request));
        co_await points_.pass();
        co_return quote_reply;
    }
    Task<Result<Bytes>> old_quote(proto::OldQuoteRequest request) override {
        old_quotes_asked.push_back(std::move(request));
        co_await points_.pass();
        co_return old_quote_reply;
    }
    Task<Result<Bytes>> certify(proto::CertifyRequest request) override {
        certified.push_back(std::move(request));
        co_await points_.pass();
        co_return certify_answer ? certify_answer(certified.size()) : make_error(Errc::unsupported, "fake: none");
    }
    Task<Result<Bytes>> tpm_command(Bytes) override { co_return make_error(Errc::tpm, "fake: none"); }
    void close() override {}
    /// Also a real image's.
    [[nodiscard]] SecretBytes key_on_record() const {
        return !kept_.empty() && number_in(kept_.view()) == record ? kept_.clone() : fake_key(record);
    }
    [[nodiscard]] bool connected() const override { return linked; }

    std::function<Task<>()> away; ///< a save waits for it
    bool linked = true;
    proto::HelloReply reply;
    std::optional<Error> hello_error;
    std::uint64_t record = 0; ///< the save whose key is durable at the manager
    std::vector<std::uint64_t> offered;
    std::vector<proto::CertifyRequest> certified;             ///< as they came
    std::function<Result<Bytes>(std::size_t)> certify_answer; ///< to the n-th, from 1; empty: unsupported
    std::vector<proto::QuoteRequest> quotes_asked;
    Result<proto::QuoteReply> quote_reply = make_error(Errc::unsupported, "fake: none");
    std::vector<proto::OldQuoteRequest> old_quotes_asked;
    Result<Bytes> old_quote_reply = make_error(Errc::unsupported, "fake: none");
    bool gone = false; ///< handed over
    Fault fault = Fault::none;

  private:
    SecretBytes kept_;
    Points& points_;
};

} // namespace vtpmd::fakes
