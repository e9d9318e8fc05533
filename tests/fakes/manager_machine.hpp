// A host for the manager's scenarios: a TPM and a disk that can lose power together, and boots in between.
#pragma once

#include "check.hpp"
#include "fake_root_of_trust.hpp"
#include "fault_file.hpp"
#include "loop.hpp"
#include "manager/vault/vault.hpp"

namespace vtpmd::fakes {

class FaultPlace final : public manager::ImagePlace {
  public:
    FaultPlace(test::FaultDisk& disk, const Log& log)
        : disk_(disk)
        , log_(log) {}
    [[nodiscard]] const std::string& path() const override { return path_; }
    Task<Result<std::unique_ptr<store::ManagerImage>>> create(store::ManagerImage::CreateOptions options) override {
        co_return co_await store::ManagerImage::create(disk_.open(), std::move(options), log_);
    }
    Task<Result<std::unique_ptr<store::ManagerImage>>> open() override {
        if (disk_.content().empty()) {
            co_return make_error(Errc::not_found, "no such file");
        }
        co_return co_await store::ManagerImage::open(disk_.open(), log_);
    }
    Task<Result<std::unique_ptr<store::ManagerImage>>> look() override {
        if (disk_.content().empty()) {
            co_return make_error(Errc::not_found, "no such file");
        }
        co_return co_await store::ManagerImage::look(disk_.open(), log_);
    }

  private:
    test::FaultDisk& disk_;
    const Log& log_;
    const std::string path_ = "manager.img";
};

class Machine {
  public:
    Machine() { options.size = 512 * 1024; }
    ~Machine() { off(); }

    /// Power goes at the n-th thing that the TPM or the disk does from now on; TPM operations count twice (power goes before
    /// or after it happened).
    void die_at_disk(std::uint64_t n) { disk->plan.die_at = disk->operations() + n; }
    void die_at_tpm(std::size_t n) {
        auto left = std::make_shared<std::size_t>(n);
        auto tick = [this, left](std::string_view) -> std::optional<Error> {
            if (disk->dead() || (*left)-- == 0) {
                disk->plan.die_at = 0;
                *left = 0;
                tpm_dead = true;
            }
            return tpm_dead ? std::optional(make_error(Errc::closed, "power is gone")) : std::nullopt;
        };
        tpm.before = tpm.after = tick;
    }
    /// The TPM goes with the disk.
    void tie_tpm_to_disk() {
        tpm.before = tpm.after = [this](std::string_view) -> std::optional<Error> {
            return disk->dead() ? std::optional(make_error(Errc::closed, "power is gone")) : std::nullopt;
        };
    }

    Result<void> create() { return start(true); }
    Result<void> open() { return start(false); }
    Result<void> start(bool create) {
        off();
        tpm_dead = false;
        root.emplace(tpm);
        place.emplace(*disk, loop.log);
        manager::Vault::Parts parts{.executor = loop.io.get_executor(),
                                    .place = *place,
                                    .root = *root,
                                    .clock = loop.clock,
                                    .log = loop.log,
                                    .unix_time = [] { return std::uint64_t{1'700'000'000}; }};
        manager::Vault::Options o = options;
        auto made = loop.run(create ? manager::Vault::create(std::move(o), std::move(parts))
                                    : manager::Vault::open(std::move(o), std::move(parts)));
        if (!made) {
            return made.error();
        }
        vault = std::move(*made);
        return {};
    }
    /// In good order, or as good as it goes.
    Result<void> off() {
        if (!vault) {
            return {};
        }
        auto closed = loop.run(vault->close());
        vault.reset();
        return closed;
    }
    /// Power gone: what was not synced is lost, wholly or in part. The TPM keeps what it has.
    void crash(test::FaultDisk::Loss loss, std::size_t parameter = 0) {
        Bytes left = disk->after_crash(loss, parameter);
        disk->plan.die_at = 0; // nothing that still runs changes the disk
        tpm.before = [](std::string_view) { return std::optional(make_error(Errc::closed, "power is gone")); };
        (void)off();
        tpm.before = tpm.after = nullptr;
        replace_disk(std::move(left));
    }
    void replace_disk(Bytes content) { disk = std::make_unique<test::FaultDisk>(std::move(content)); }

    Result<void> save(const Uuid& uuid, std::uint8_t mark, std::size_t size = manager::hash_key_long) {
        SecretBytes key{ByteView(Bytes(size, static_cast<std::byte>(mark)))};
        return loop.run(vault->save_key(uuid, std::move(key)));
    }
    /// The mark of what load_key() gives, -1 for nothing.
    int load(const Uuid& uuid) {
        auto key = loop.run(vault->load_key(uuid));
        REQUIRE(key);
        return *key ? std::to_integer<int>((*key)->data()[0]) : -1;
    }
    Result<void> enrol(const Uuid& uuid, TpmVersion version = TpmVersion::tpm20) {
        return loop.run(vault->register_vtpm(uuid, version));
    }

    Loop loop;
    FakeTpm tpm;
    std::unique_ptr<test::FaultDisk> disk = std::make_unique<test::FaultDisk>();
    manager::Vault::Options options;
    std::optional<FakeRootOfTrust> root;
    std::optional<FaultPlace> place;
    std::unique_ptr<manager::Vault> vault;
    bool tpm_dead = false;
};

} // namespace vtpmd::fakes
