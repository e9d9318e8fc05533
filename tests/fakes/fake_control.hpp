// A manager that is nothing but its list of vTPMs; remembers what it was asked.
#pragma once

#include "manager/control.hpp"

#include <map>

namespace vtpmd::fakes {

class FakeControl final : public manager::Control {
  public:
    std::map<Uuid, manager::VtpmInfo> all;
    std::vector<std::string> calls;  ///< "create UUID" and the like
    std::optional<Error> next_error; ///< given once, by the next call that can fail

    [[nodiscard]] manager::HostInfo host() const override { return {.version = "fake", .vtpms = all.size()}; }
    [[nodiscard]] std::vector<manager::VtpmInfo> vtpms() const override {
        std::vector<manager::VtpmInfo> out;
        for (const auto& [uuid, v] : all) {
            out.push_back(v);
        }
        return out;
    }
    [[nodiscard]] Result<manager::VtpmInfo> vtpm(const Uuid& uuid) const override {
        auto it = all.find(uuid);
        if (it == all.end()) {
            return make_error(Errc::not_found, "vTPM {} is not registered", uuid);
        }
        return it->second;
    }
    Task<Result<manager::VtpmInfo>> create(Uuid uuid, TpmVersion version) override {
        if (auto no = asked("create", uuid); !no) {
            co_return no.error();
        }
        all[uuid] = {.uuid = uuid, .version = version};
        co_return all[uuid];
    }
    Task<Result<void>> remove(Uuid uuid) override {
        auto outcome = asked("remove", uuid);
        if (outcome) {
            all.erase(uuid);
        }
        co_return outcome;
    }
    Task<Result<void>> start(Uuid uuid) override { co_return asked("start", uuid); }
    Task<Result<void>> stop(Uuid uuid) override { co_return asked("stop", uuid); }
    Task<Result<manager::SealInfo>> seal() override {
        co_return manager::SealInfo{.selection = "sha256:0", .pcrs = {{.bank = "sha256", .index = 0, .value = "00"}}};
    }
    [[nodiscard]] manager::FreshnessInfo freshness() const override { return {.policy = "strict", .counter = 7}; }
    [[nodiscard]] std::vector<manager::Metric> metrics() const override {
        return {{.name = "a_total", .help = "A", .type = "counter", .samples = {{.labels = "x=\"y\"", .value = 3}}},
                {.name = "b", .help = "B", .type = "gauge", .samples = {{.value = 0.25}}}};
    }

  private:
    Result<void> asked(std::string_view what, const Uuid& uuid) {
        if (what != "create" && !all.contains(uuid)) {
            return make_error(Errc::not_found, "vTPM {} is not registered", uuid);
        }
        calls.push_back(fmt::format("{} {}", what, uuid));
        if (next_error) {
            Error e = *std::exchange(next_error, std::nullopt);
            return e;
        }
        return {};
    }
};

} // namespace vtpmd::fakes
