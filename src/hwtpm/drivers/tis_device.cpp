#include "hwtpm/drivers/tis_device.hpp"

#include "hwtpm/drivers/kernel_device.hpp"
#include "util/fd.hpp"

#include <cerrno>
#include <fcntl.h>
#include <sys/mman.h>
#include <thread>

namespace vtpmd::hwtpm {

namespace {

class MappedBus final : public TisBus {
  public:
    explicit MappedBus(void* base)
        : base_(static_cast<volatile std::uint8_t*>(base)) {}
    MappedBus(const MappedBus&) = delete;
    MappedBus& operator=(const MappedBus&) = delete;
    ~MappedBus() override { ::munmap(const_cast<std::uint8_t*>(base_), tis::window_size); }

    // Each access is one bus cycle of its own width: volatile, never merged.
    std::uint8_t read8(std::uint32_t offset) override { return base_[offset]; }
    std::uint32_t read32(std::uint32_t offset) override { return *word(offset); }
    void write8(std::uint32_t offset, std::uint8_t value) override { base_[offset] = value; }
    void write32(std::uint32_t offset, std::uint32_t value) override { *word(offset) = value; }
    Time now() override { return std::chrono::steady_clock::now(); }
    void pause(std::chrono::microseconds d) override { std::this_thread::sleep_for(d); }

  private:
    volatile std::uint32_t* word(std::uint32_t offset) {
        return reinterpret_cast<volatile std::uint32_t*>(base_ + offset);
    }
    volatile std::uint8_t* base_;
};

class TisDevice final : public TpmDevice {
  public:
    TisDevice(std::unique_ptr<TisBus> bus, TisPort::Config config, std::string name, bool exclusive)
        : bus_(std::move(bus))
        , port_(*bus_, config)
        , name_(std::move(name))
        , exclusive_(exclusive) {}
    TisDevice(const TisDevice&) = delete;
    TisDevice& operator=(const TisDevice&) = delete;
    ~TisDevice() override { TisDevice::release(); }

    Result<void> restart() override {
        auto found = detect_tis(*bus_);
        if (!found) {
            return in_context(found.error(), name_);
        }
        if (exclusive_) {
            port_.relinquish_others();
        }
        return {};
    }
    Result<void> claim() override {
        if (claimed_) {
            return {};
        }
        if (auto r = port_.request_locality(); !r) {
            port_.relinquish(); // withdraws the request
            return in_context(r.error(), name_);
        }
        claimed_ = true;
        return {};
    }
    void release() noexcept override {
        if (claimed_) {
            port_.relinquish();
            claimed_ = false;
        }
    }
    Result<Bytes> transmit(ByteView command, std::chrono::milliseconds limit) override {
        if (!claimed_) {
            return make_error(Errc::closed, "{}: no locality is held", name_);
        }
        auto answer = port_.transmit(command, limit);
        if (!answer) {
            release();
            return in_context(answer.error(), name_);
        }
        return answer;
    }
    [[nodiscard]] std::string description() const override { return name_; }
    [[nodiscard]] bool exclusive() const override { return exclusive_; }

  private:
    std::unique_ptr<TisBus> bus_;
    TisPort port_;
    std::string name_;
    bool exclusive_;
    bool claimed_ = false;
};

} // namespace

Result<std::unique_ptr<TpmDevice>> make_tis_device(std::unique_ptr<TisBus> bus, TisPort::Config config,
                                                   std::string name, bool exclusive) {
    auto device = std::make_unique<TisDevice>(std::move(bus), config, std::move(name), exclusive);
    if (auto r = device->restart(); !r) {
        return r.error();
    }
    return std::unique_ptr<TpmDevice>(std::move(device));
}

Result<std::unique_ptr<TpmDevice>> open_tis(std::uint64_t address, unsigned locality, const Log& log) {
    const std::string name = fmt::format("tis:{:#x}", address);
    UniqueFd mem(::open("/dev/mem", O_RDWR | O_SYNC | O_CLOEXEC));
    if (!mem) {
        switch (errno) {
        case ENOENT:
            return make_error(Errc::not_found,
                              "{}: there is no /dev/mem to reach the registers through: use --tpm=device:/dev/tpm0; if "
                              "that is not there either, enable the TPM in the firmware's setup, or try vtpmd on a TPM "
                              "in software: --tpm=swtpm:unix:PATH, --tpm=embedded:DIR",
                              name);
        case EACCES:
        case EPERM:
            return make_error(Errc::permission, "{}: /dev/mem needs root and CAP_SYS_RAWIO", name);
        default:
            return in_context(errno_error(errno, "/dev/mem"), name);
        }
    }
    void* base =
        ::mmap(nullptr, tis::window_size, PROT_READ | PROT_WRITE, MAP_SHARED, mem.get(), static_cast<off_t>(address));
    if (base == MAP_FAILED) {
        if (errno == EPERM || errno == EACCES) {
            return make_error(Errc::permission,
                              "{}: the kernel keeps the registers to itself: its own driver is bound (use "
                              "--tpm=device:/dev/tpm0, or unbind it), or boot with iomem=relaxed",
                              name);
        }
        return in_context(errno_error(errno, "mapping the registers"), name);
    }
    const auto others = kernel_tpms(); // with iomem=relaxed both can reach the registers
    const bool shared = !others.empty();
    if (shared) {
        log.warning("{}: a driver of the kernel's has a TPM too ({}); localities keep the two apart, but "
                    "--tpm=device:/dev/{} is the better way",
                    name, others.front(), others.front());
    }
    return make_tis_device(std::make_unique<MappedBus>(base),
                           TisPort::Config{.locality = static_cast<std::uint8_t>(locality)}, name, !shared);
}

} // namespace vtpmd::hwtpm
