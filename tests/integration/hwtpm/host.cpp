#include "host.hpp"

#include "hwtpm/drivers/driver_spec.hpp"
#include "hwtpm/drivers/swtpm_device.hpp"
#include "hwtpm/queue/hardware_root.hpp"
#include "tpm/commands.hpp"
#include "util/wire.hpp"

#include <filesystem>
#include <fstream>

namespace vtpmd::test {

namespace {

/// The way to the TPM while there is power.
class PoweredDevice final : public hwtpm::TpmDevice {
  public:
    PoweredDevice(std::unique_ptr<hwtpm::TpmDevice> inner, Power& power)
        : inner_(std::move(inner))
        , power_(power) {}
    [[nodiscard]] std::string description() const override { return inner_->description(); }
    Result<Bytes> transmit(ByteView command, std::chrono::milliseconds limit) override {
        if (!power_.pass()) {
            return gone();
        }
        auto answer = inner_->transmit(command, limit);
        return power_.pass() ? std::move(answer) : Result<Bytes>(gone());
    }
    Result<void> claim() override { return power_.gone ? Result<void>(gone()) : inner_->claim(); }
    void release() noexcept override { inner_->release(); }
    Result<void> restart() override { return power_.gone ? Result<void>(gone()) : inner_->restart(); }
    [[nodiscard]] bool exclusive() const override { return inner_->exclusive(); }

  private:
    static Error gone() { return make_error(Errc::closed, "power is gone"); }
    std::unique_ptr<hwtpm::TpmDevice> inner_;
    Power& power_;
};

Bytes read_file(const std::filesystem::path& path) {
    std::ifstream in(path, std::ios::binary);
    std::string text((std::istreambuf_iterator<char>(in)), {});
    return to_bytes(as_bytes(text));
}

} // namespace

bool Power::pass() {
    if (disk != nullptr && disk->dead()) {
        gone = true;
    }
    if (moments_left != never && !gone && moments_left-- == 0) {
        gone = true;
        disk->plan.die_at = 0;
    }
    return !gone;
}

Host::Host(TpmVersion version)
    : version_(version)
    , swtpm_({.version = version})
    , log_(LogLevel::debug, [this](LogLevel, std::string_view line) {
        std::lock_guard lock(lines_mutex_);
        lines_.emplace_back(line);
    }) {
    options.size = store::ManagerImage::min_size;
    options.allow_zero_pcrs = true; // nothing measures this machine
    options.seal_pcrs = pcrs("0,7");
    // Storage key and ownership are made once, before anything is cut; a store without freshness leaves no counter.
    options.freshness.mode = manager::FreshnessPolicy::Mode::off;
    REQUIRE(start(true));
    REQUIRE(off());
    options.freshness = {};
    put_back_disk({});
}

Host::~Host() { (void)off(); }

Result<std::unique_ptr<hwtpm::TpmDevice>> Host::device() {
    auto opened = hwtpm::open_swtpm({.kind = hwtpm::DriverKind::swtpm_unix, .path = swtpm_.socket()}, 0, log_);
    if (!opened) {
        return opened.error();
    }
    return std::unique_ptr<hwtpm::TpmDevice>(std::make_unique<PoweredDevice>(std::move(*opened), power_));
}

Result<void> Host::start(bool create) {
    (void)off();
    power_.disk = disk.get();
    auto opened = device();
    if (!opened) {
        return opened.error();
    }
    asio::any_io_executor executor = loop.io.get_executor();
    auto made = version_ == TpmVersion::tpm12
                    ? hwtpm::make_root12(std::move(*opened),
                                         {.owner_auth = SecretBytes(20), .srk_auth = SecretBytes(20), .locality = 0},
                                         executor, log_)
                    : hwtpm::make_root20(std::move(*opened), {}, executor, log_);
    if (!made) {
        return made.error();
    }
    root = std::move(*made);
    place_.emplace(*disk, log_);
    manager::Vault::Parts parts{
        .executor = executor, .place = *place_, .root = *root, .clock = loop.clock, .log = log_, .unix_time = [] {
            return std::uint64_t{1'700'000'000};
        }};
    manager::Vault::Options given = options;
    auto opening = create ? manager::Vault::create(std::move(given), std::move(parts))
                          : manager::Vault::open(std::move(given), std::move(parts));
    auto ready = loop.run(std::move(opening));
    if (!ready) {
        drop();
        return ready.error();
    }
    vault = std::move(*ready);
    return {};
}

Result<void> Host::off() {
    if (!vault) {
        return {};
    }
    auto closed = loop.run(vault->close());
    drop();
    return closed;
}

void Host::drop() {
    vault.reset();
    if (root) {
        loop.run(root->close());
        root.reset();
    }
}

void Host::power_cycle(FaultDisk::Loss loss) {
    Bytes left = disk->after_crash(loss);
    disk->plan.die_at = 0; // nothing that still runs changes anything
    power_.gone = true;
    (void)off();
    swtpm_.stop();
    swtpm_.start();
    put_back_disk(left);
    power_ = {.disk = disk.get()};
}

Host::Copy Host::copy() {
    (void)off();
    swtpm_.stop();
    Copy out{.tpm = {}, .disk = disk->content()};
    for (const auto& entry : std::filesystem::directory_iterator(swtpm_.state_dir())) {
        out.tpm.emplace_back(entry.path().filename(), read_file(entry.path()));
    }
    swtpm_.start();
    return out;
}

void Host::put_back_tpm(const Copy& copy) {
    (void)off();
    swtpm_.stop();
    for (const auto& [name, content] : copy.tpm) {
        std::ofstream out(swtpm_.state_dir() / name, std::ios::binary | std::ios::trunc);
        out.write(reinterpret_cast<const char*>(content.data()), static_cast<std::streamsize>(content.size()));
    }
    swtpm_.start();
    power_ = {.disk = disk.get()};
}

void Host::put_back(const Copy& copy) {
    put_back_tpm(copy);
    put_back_disk(copy.disk);
    power_ = {.disk = disk.get()};
}

void Host::measure() {
    (void)off();
    auto opened = device();
    REQUIRE(opened);
    const tpm::HashValue value{0x000B, Bytes(32, std::byte{0x5A})};
    const Bytes command = version_ == TpmVersion::tpm12 ? tpm::extend_command(4, tpm::Sha1Digest{})
                                                        : tpm::pcr_extend_command(4, std::span(&value, 1));
    REQUIRE((*opened)->transmit(command, std::chrono::seconds(10)));
}

Result<void> Host::save(const Uuid& uuid, unsigned mark) {
    Bytes key(manager::hash_key_long);
    key[0] = static_cast<std::byte>(mark >> 8U);
    key[1] = static_cast<std::byte>(mark);
    return loop.run(vault->save_key(uuid, SecretBytes(ByteView(key))));
}

unsigned Host::load(const Uuid& uuid) {
    auto key = loop.run(vault->load_key(uuid));
    REQUIRE(key);
    if (!*key) {
        return 0;
    }
    const ByteView bytes = (*key)->view();
    return std::to_integer<unsigned>(bytes[0]) << 8U | std::to_integer<unsigned>(bytes[1]);
}

std::size_t Host::counters_in_tpm() {
    (void)off();
    auto opened = device();
    REQUIRE(opened);
    WireWriter w;
    const bool v12 = version_ == TpmVersion::tpm12;
    if (v12) { // TPM_GetCapability(TPM_CAP_HANDLE, TPM_RT_COUNTER): size u32, loaded u16, handles
        w.be16(0x00C1).be32(22).be32(0x65).be32(0x14).be32(4).be32(0x06);
    } else { // TPM2_GetCapability(TPM_CAP_HANDLES, 0x01805600, 256): more u8, capability u32, count u32, handles
        w.be16(0x8001).be32(22).be32(0x17A).be32(1).be32(0x01805600).be32(256);
    }
    auto answer = (*opened)->transmit(w.view(), std::chrono::seconds(10));
    REQUIRE(answer);
    WireReader r(*answer);
    r.skip(6);
    REQUIRE(r.be32() == 0);
    r.skip(v12 ? 4 : 5);
    std::size_t count = v12 ? r.be16() : r.be32();
    std::size_t ours = 0;
    for (; count > 0; --count) {
        const std::uint32_t handle = r.be32();
        ours += v12 || (handle >= 0x01805600 && handle <= 0x018056FF) ? 1 : 0;
    }
    REQUIRE(r.expect_end());
    return ours;
}

hwtpm::PcrSelection Host::pcrs(std::string_view indices) const {
    const std::string_view bank = version_ == TpmVersion::tpm12 ? "sha1" : "sha256";
    return hwtpm::parse_pcr_selection(fmt::format("{}:{}", bank, indices)).value();
}

} // namespace vtpmd::test
