// A manager that is nothing but its list of vTPMs; remembers what it was asked.
#pragma once

#include "manager/management/control.hpp"

#include <algorithm>
#include <map>

namespace vtpmd::fakes {

class FakeControl final : public manager::Control {
  public:
    std::map<Uuid, manager::VtpmInfo> all;
    std::map<Uuid, manager::GroupStatus> all_groups;
    manager::NewGroup new_group;           ///< as the last one was asked for
    std::optional<manager::NoCa> if_no_ca; ///< as the last one asked
    std::vector<std::string> calls;        ///< "create UUID" and the like
    mutable std::size_t asked_for = 0;     ///< calls of vtpm()
    std::optional<Uuid> gone;              ///< between vtpms() and vtpm()
    std::uint64_t grown_to = 0;            ///< as the last one asked
    std::optional<Error> next_error;       ///< given once, by the next call that can fail

    Task<Result<manager::HostInfo>> grow_store(std::uint64_t bytes) override {
        grown_to = bytes;
        co_return host();
    }
    [[nodiscard]] manager::HostInfo host() const override { return {.version = "fake", .vtpms = all.size()}; }
    [[nodiscard]] std::vector<Uuid> vtpms() const override {
        std::vector<Uuid> out;
        for (const auto& [uuid, v] : all) {
            out.push_back(uuid);
        }
        return out;
    }
    [[nodiscard]] Result<manager::VtpmInfo> vtpm(const Uuid& uuid) const override {
        ++asked_for;
        auto it = all.find(uuid);
        if (it == all.end() || uuid == gone) {
            return make_error(Errc::not_found, "vTPM {} is not registered", uuid);
        }
        return it->second;
    }
    Task<Result<manager::VtpmInfo>> create(manager::NewVtpm v) override {
        if (v.group && !all_groups.contains(*v.group)) {
            co_return make_error(Errc::not_found, "there is no group {}", *v.group);
        }
        if (auto no = asked("create", v.uuid); !no) {
            co_return no.error();
        }
        all[v.uuid] = {
            .uuid = v.uuid, .name = v.name, .version = v.version, .group = v.group.value_or(Uuid{}), .user = v.user};
        co_return all[v.uuid];
    }
    Task<Result<manager::VtpmInfo>> give_to(Uuid uuid, std::uint32_t user) override {
        if (auto no = asked("give_to", uuid); !no) {
            co_return no.error();
        }
        all[uuid].user = user;
        co_return all[uuid];
    }
    Task<Result<manager::VtpmInfo>> rename(Uuid uuid, std::string name) override {
        if (auto no = asked("rename", uuid); !no) {
            co_return no.error();
        }
        all[uuid].name = std::move(name);
        co_return all[uuid];
    }
    Task<Result<manager::VtpmInfo>> move(Uuid uuid, Uuid group) override {
        if (auto no = asked("move", uuid); !no) {
            co_return no.error();
        }
        all[uuid].group = group;
        co_return all[uuid];
    }
    Task<Result<void>> remove(Uuid uuid) override {
        auto outcome = asked("remove", uuid);
        if (outcome) {
            all.erase(uuid);
        }
        co_return outcome;
    }
    Task<Result<void>> reset(Uuid uuid) override { co_return asked("reset", uuid); }
    manager::VtpmDetail details; ///< of every vTPM
    [[nodiscard]] Result<manager::VtpmDetail> detail(const Uuid& uuid) const override {
        auto known = vtpm(uuid);
        return known ? Result<manager::VtpmDetail>(details) : Result<manager::VtpmDetail>(known.error());
    }
    Task<Result<void>> start(Uuid uuid, manager::StartOrder order) override {
        co_return asked(fmt::format("start{}{}", order.once ? " once" : "",
                                    order.wait ? fmt::format(" wait {}", order.wait->count()) : ""),
                        uuid);
    }
    Task<Result<void>> stop(Uuid uuid, bool keep_autostart) override {
        co_return asked(keep_autostart ? "stop keep" : "stop", uuid);
    }
    Task<Result<manager::VtpmInfo>> autostart(Uuid uuid, bool on) override {
        if (auto no = asked(on ? "autostart on" : "autostart off", uuid); !no) {
            co_return no.error();
        }
        all[uuid].autostart = on;
        co_return all[uuid];
    }
    Task<Result<Bytes>> quote(Uuid uuid, manager::QuoteOrder order) override {
        auto outcome = asked(
            fmt::format("quote {} of {} on {} for {} bytes;", uuid, order.pcrs, order.host_pcrs, order.nonce.size()),
            uuid);
        co_return outcome ? Result<Bytes>(order.nonce) : Result<Bytes>(outcome.error());
    }
    [[nodiscard]] std::vector<manager::GroupStatus> groups() const override {
        std::vector<manager::GroupStatus> out;
        for (const auto& [uuid, g] : all_groups) {
            out.push_back(g);
        }
        return out;
    }
    [[nodiscard]] Result<manager::GroupStatus> group(const Uuid& uuid) const override {
        auto it = all_groups.find(uuid);
        if (it == all_groups.end()) {
            return make_error(Errc::not_found, "there is no group {}", uuid);
        }
        return it->second;
    }
    /// The first 16 bytes of a list are its group's UUID.
    Task<Result<manager::GroupStatus>> create_group(manager::NewGroup request) override {
        Uuid uuid;
        if (request.list.size() < uuid.bytes.size()) {
            co_return make_error(Errc::usage, "a list of {} bytes", request.list.size());
        }
        std::copy_n(request.list.begin(), uuid.bytes.size(), uuid.bytes.begin());
        calls.push_back(fmt::format("create group {}", uuid));
        all_groups[uuid] = {.uuid = uuid, .open = true, .approver = request.approver, .epoch = 1, .sequence = 1};
        new_group = std::move(request);
        co_return all_groups[uuid];
    }
    Task<Result<manager::GroupStatus>> update_group(Uuid uuid, Bytes list) override {
        auto known = group(uuid);
        if (known) {
            calls.push_back(fmt::format("update group {} by {} bytes", uuid, list.size()));
            known->sequence = ++all_groups[uuid].sequence;
        }
        co_return known;
    }
    Task<Result<void>> remove_group(Uuid uuid) override {
        if (all_groups.erase(uuid) == 0) {
            co_return make_error(Errc::not_found, "there is no group {}", uuid);
        }
        calls.push_back(fmt::format("remove group {}", uuid));
        co_return Result<void>{};
    }
    Task<Result<manager::GroupStatus>> recover_group(Uuid uuid, SecretBytes shared) override {
        auto known = group(uuid);
        if (known) {
            calls.push_back(fmt::format("recover group {} by {} bytes", uuid, shared.size()));
        }
        co_return known;
    }
    Task<Result<manager::BackupInfo>> verify_backup(Bytes image) override {
        calls.emplace_back(fmt::format("verify backup of {} bytes", image.size()));
        if (next_error) {
            Error e = *std::exchange(next_error, std::nullopt);
            co_return e;
        }
        co_return manager::BackupInfo{.backup = true,
                                      .written_at = 7,
                                      .counter = 9,
                                      .behind = 1,
                                      .relation = manager::BackupInfo::Relation::older,
                                      .opened_by = {{.id = "11111111", .created = 3, .label = "safe"}},
                                      .not_opened_by = {}};
    }
    std::vector<manager::RecoveryKeyInfo> keys;
    [[nodiscard]] std::vector<manager::RecoveryKeyInfo> recovery_keys() const override { return keys; }
    Task<Result<manager::NewRecoveryKey>> add_recovery_key(std::string label) override {
        keys.push_back({.id = fmt::format("{:08x}", keys.size() + 1), .created = 1, .label = std::move(label)});
        co_return manager::NewRecoveryKey{.info = keys.back(), .file = SecretBytes(as_bytes("# words\n00ff\n"))};
    }
    Task<Result<void>> remove_recovery_key(std::string id) override {
        if (std::erase_if(keys, [&id](const manager::RecoveryKeyInfo& k) { return k.id == id; }) == 0) {
            co_return make_error(Errc::not_found, "there is no recovery key '{}'", id);
        }
        co_return Result<void>{};
    }
    Task<Result<std::unique_ptr<manager::StoreCopy>>> backup() override {
        calls.emplace_back("backup");
        if (next_error) {
            Error e = *std::exchange(next_error, std::nullopt);
            co_return e;
        }
        store::CopyPlan plan{
            .head = Bytes(5, std::byte{1}), .header = Bytes(3, std::byte{2}), .half_size = 8, .used = 6};
        auto more = [](std::uint64_t, MutByteView into) -> Task<Result<void>> {
            std::ranges::fill(into, std::byte{3});
            co_return Result<void>{};
        };
        co_return store::make_image_copy(std::move(plan), more);
    }
    Task<Result<manager::CaInfo>> group_ca(Uuid uuid, manager::NoCa if_none) override {
        if (auto known = group(uuid); !known) {
            co_return known.error();
        }
        if_no_ca = if_none;
        co_return manager::CaInfo{.certificates = "chain\n", .request = "request\n"};
    }
    Task<Result<manager::CaInfo>> set_group_ca(Uuid uuid, std::string certificates) override {
        if (auto known = group(uuid); !known) {
            co_return known.error();
        }
        calls.push_back(fmt::format("set CA of group {} by {} bytes", uuid, certificates.size()));
        co_return manager::CaInfo{.certificates = std::move(certificates), .request = "request\n"};
    }
    Task<Result<manager::SealInfo>> seal() override {
        co_return manager::SealInfo{.selection = "sha256:0", .pcrs = {{.bank = "sha256", .index = 0, .value = "00"}}};
    }
    [[nodiscard]] manager::FreshnessInfo freshness() const override { return {.policy = "strict", .counter = 7}; }
    [[nodiscard]] manager::ActivityInfo activity(std::size_t limit) const override {
        manager::ActivityInfo out{.vtpms = all.size(), .open = 1, .guest_commands = 5, .freshness_counter = limit};
        for (const auto& [uuid, v] : all) {
            out.busiest.push_back({.uuid = uuid, .state = v.state, .commands_per_second = 1.26, .commands = 4});
        }
        return out;
    }
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
