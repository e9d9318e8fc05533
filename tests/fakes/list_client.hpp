// A journal's client whose state is the list of the records it was given, in order.
#pragma once

#include "store/journal.hpp"

#include <optional>
#include <vector>

namespace vtpmd::test {

class ListClient final : public store::JournalClient {
  public:
    Result<void> apply(ByteView record) override {
        if (refuse_all) {
            return make_error(Errc::version, "a record this version does not know");
        }
        records.push_back(to_bytes(record));
        return {};
    }
    void snapshot(const std::function<void(ByteView record)>& emit) override {
        ++snapshots;
        for (const Bytes& r : records) {
            emit(r);
        }
    }
    void snapshot_after(std::span<const ByteView> after, const std::function<void(ByteView record)>& emit) override {
        snapshot(emit);
        for (const ByteView r : after) {
            emit(r);
        }
    }
    Result<void> check(std::span<const Bytes> wanted) override { return on_check ? on_check(wanted) : Result<void>{}; }
    void on_stopped(const Error& why) override { stopped = why; }
    Task<> gather(Task<Result<void>> everyone) override {
        ++gathers;
        if (on_gather) {
            co_await on_gather(std::move(everyone));
        }
    }
    std::vector<Bytes> prologue(std::size_t count) override {
        prologue_counts.push_back(count);
        return next_prologue;
    }
    Task<Result<void>> before_acknowledge() override {
        ++acknowledgements;
        applied_when_acknowledged = records.size();
        co_return acknowledge_outcome;
    }

    std::vector<Bytes> records;
    std::vector<Bytes> next_prologue;
    std::vector<std::size_t> prologue_counts;
    Result<void> acknowledge_outcome{};
    std::function<Task<>(Task<Result<void>> everyone)> on_gather; ///< nobody is waited for without it
    std::function<Result<void>(std::span<const Bytes>)> on_check;
    std::optional<Error> stopped;
    bool refuse_all = false;
    int gathers = 0;
    int snapshots = 0;
    int acknowledgements = 0;
    std::size_t applied_when_acknowledged = 0;
};

} // namespace vtpmd::test
