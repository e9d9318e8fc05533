// Engine over libtpms. libtpms calls back without a context pointer, so the one engine of the process stands in
// `current`; everything else is in the object.
#include "engine/engine.hpp"

#include "tpm/clock.hpp"
#include "tpm/header.hpp"
#include "util/fd.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <sys/mman.h>
#include <unistd.h>

extern "C" {
#include <libtpms/tpm_error.h>
#include <libtpms/tpm_library.h>
#include <libtpms/tpm_memory.h>
#include <libtpms/tpm_nvfilename.h>
#include <libtpms/tpm_tis.h>
}

namespace vtpmd {

namespace {

/// What the control channel and the TIS allow: localities 0 to 4. TPM Main part 3 section 18, PC Client TIS section 4.
constexpr std::uint8_t highest_locality = 4;

/// A buffer that libtpms allocated: cleansed and freed.
struct TpmBuffer {
    unsigned char* data = nullptr;
    std::uint32_t size = 0;

    TpmBuffer() = default;
    TpmBuffer(const TpmBuffer&) = delete;
    TpmBuffer& operator=(const TpmBuffer&) = delete;
    ~TpmBuffer() {
        if (data != nullptr) {
            cleanse({reinterpret_cast<std::byte*>(data), size});
            std::free(data);
        }
    }
    [[nodiscard]] ByteView view() const { return view_of(data, data == nullptr ? 0 : size); }
};

/// Where libtpms writes what it has to say, instead of stderr: when a TPM 2.0 enters failure mode it would write the
/// command there, authorisation values and all. Only the first line of a message is ever shown.
class LibraryMessages {
  public:
    LibraryMessages()
        : file_(memfd_create("libtpms-messages", MFD_CLOEXEC)) {
        if (file_) {
            TPMLIB_SetDebugFD(file_.get());
        }
    }
    ~LibraryMessages() { TPMLIB_SetDebugFD(-1); }
    LibraryMessages(const LibraryMessages&) = delete;
    LibraryMessages& operator=(const LibraryMessages&) = delete;

    /// ": what libtpms said first", or nothing; and forgets all of it.
    std::string take() {
        std::array<char, 160> line{};
        const ssize_t n = file_ ? pread(file_.get(), line.data(), line.size(), 0) : 0;
        if (n <= 0) {
            return {};
        }
        if (ftruncate(file_.get(), 0) == 0) {
            (void)lseek(file_.get(), 0, SEEK_SET);
        }
        const std::string_view text(line.data(), static_cast<std::size_t>(n));
        return fmt::format(": {}", text.substr(0, text.find('\n')));
    }

  private:
    UniqueFd file_;
};

Error tpm_error(TPM_RESULT rc, std::string_view what) {
    Error e = make_error(Errc::tpm, "{}: libtpms answered {:#x}", what, rc);
    e.detail = rc;
    return e;
}

class LibtpmsEngine final : public Engine {
  public:
    explicit LibtpmsEngine(TpmVersion version) noexcept
        : version_(version) {}
    ~LibtpmsEngine() override;
    LibtpmsEngine(const LibtpmsEngine&) = delete;
    LibtpmsEngine& operator=(const LibtpmsEngine&) = delete;

    Result<void> start_library();

    Result<void> power_on(const EngineState& state) override;
    void power_off() override;
    [[nodiscard]] bool running() const override { return running_; }
    Bytes execute(ByteView command, std::uint8_t locality) override;
    void cancel() override;
    std::optional<EngineState> take_staged() override;
    [[nodiscard]] bool has_staged() const override { return staged_; }
    void staged_is_durable() override;
    void staged_failed() override;
    Result<EngineState> snapshot() override;
    Result<SecretBytes> registers() override;
    Result<void> resume(const SecretBytes& volatile_state) override;
    [[nodiscard]] TpmVersion version() const override { return version_; }
    BufferSize buffer_size(std::uint32_t wanted) override;
    [[nodiscard]] std::string info(unsigned flags) const override;
    [[nodiscard]] std::string failure() const override { return failure_; }
    [[nodiscard]] bool established() const override;
    Result<void> reset_established(std::uint8_t locality) override;
    Result<void> hash_start() override;
    Result<void> hash_data(ByteView data) override;
    Result<void> hash_end() override;

    // What libtpms' callbacks do.
    TPM_RESULT load(unsigned char** data, std::uint32_t* length, std::string_view name) const;
    TPM_RESULT store(ByteView data, std::string_view name);
    TPM_RESULT remove(std::string_view name, bool must_exist);
    [[nodiscard]] std::uint8_t locality() const noexcept { return locality_; }

  private:
    Result<void> validate_and_init();
    void note_failure(TPM_RESULT rc);
    void stage_clock();
    [[nodiscard]] bool stage(SecretBytes& kept, ByteView data);
    [[nodiscard]] Result<void> running_or_error(std::string_view what) const;

    TpmVersion version_;
    LibraryMessages messages_;
    bool running_ = false;
    std::string failure_; ///< why execute() answered with a failure last
    std::uint8_t locality_ = 0;
    std::atomic<bool> executing_ = false;

    SecretBytes permanent_;      ///< as last given or stored
    SecretBytes save_state_;     ///< as last given or stored
    SecretBytes volatile_state_; ///< only while the TPM starts with it
    bool staged_ = false;        ///< permanent_ or save_state_ changed since take_staged()
    bool durable_ = false;       ///< permanent_ and save_state_ are what the disk has

    /// TPMLIB_Process' buffer, which it enlarges as it likes; the capacity is kept from command to command.
    unsigned char* response_ = nullptr;
    std::uint32_t response_capacity_ = 0;
    /// The command's copy: libtpms decrypts parameters in place.
    std::array<std::byte, tpm::packet_limit> command_{};
};

/// libtpms has one TPM per process and its callbacks no context: this is it.
std::atomic<LibtpmsEngine*> current = nullptr;

// --- callbacks (extern "C" in type only; libtpms runs them on the thread that called it) ---

TPM_RESULT on_nvram_init() { return TPM_SUCCESS; }
TPM_RESULT on_nvram_load(unsigned char** data, std::uint32_t* length, std::uint32_t /*tpm_number*/, const char* name) {
    return current.load()->load(data, length, name);
}
TPM_RESULT on_nvram_store(const unsigned char* data, std::uint32_t length, std::uint32_t /*tpm_number*/,
                          const char* name) {
    return current.load()->store(view_of(data, length), name);
}
TPM_RESULT on_nvram_delete(std::uint32_t /*tpm_number*/, const char* name, TPM_BOOL must_exist) {
    return current.load()->remove(name, must_exist != 0);
}
TPM_RESULT on_io_init() { return TPM_SUCCESS; }
TPM_RESULT on_get_locality(TPM_MODIFIER_INDICATOR* locality, std::uint32_t /*tpm_number*/) {
    *locality = current.load()->locality();
    return TPM_SUCCESS;
}
/// There is no button: software presence (TSC_PhysicalPresence) is the firmware's affair inside the guest.
TPM_RESULT on_get_physical_presence(TPM_BOOL* presence, std::uint32_t /*tpm_number*/) {
    *presence = 0;
    return TPM_SUCCESS;
}

LibtpmsEngine::~LibtpmsEngine() {
    LibtpmsEngine::power_off();
    if (response_ != nullptr) {
        cleanse({reinterpret_cast<std::byte*>(response_), response_capacity_});
        std::free(response_);
    }
    cleanse(command_);
    LibtpmsEngine* self = this;
    current.compare_exchange_strong(self, nullptr);
}

Result<void> LibtpmsEngine::start_library() {
    LibtpmsEngine* nobody = nullptr;
    if (!current.compare_exchange_strong(nobody, this)) {
        return make_error(Errc::busy, "this process has a TPM already: libtpms can run only one");
    }
    libtpms_callbacks callbacks{};
    callbacks.sizeOfStruct = sizeof callbacks;
    callbacks.tpm_nvram_init = on_nvram_init;
    callbacks.tpm_nvram_loaddata = on_nvram_load;
    callbacks.tpm_nvram_storedata = on_nvram_store;
    callbacks.tpm_nvram_deletename = on_nvram_delete;
    callbacks.tpm_io_init = on_io_init;
    callbacks.tpm_io_getlocality = on_get_locality;
    callbacks.tpm_io_getphysicalpresence = on_get_physical_presence;
    if (TPM_RESULT rc = TPMLIB_RegisterCallbacks(&callbacks); rc != TPM_SUCCESS) {
        return tpm_error(rc, "registering the callbacks");
    }
    const auto choice = version_ == TpmVersion::tpm12 ? TPMLIB_TPM_VERSION_1_2 : TPMLIB_TPM_VERSION_2;
    if (TPM_RESULT rc = TPMLIB_ChooseTPMVersion(choice); rc != TPM_SUCCESS) {
        return make_error(Errc::unsupported, "libtpms has no TPM {} ({:#x})", to_string(version_), rc);
    }
    TPMLIB_SetBufferSize(tpm::packet_limit, nullptr, nullptr);
    return {};
}

Result<void> LibtpmsEngine::power_on(const EngineState& state) {
    power_off();
    failure_.clear();
    permanent_ = state.permanent.clone();
    save_state_ = state.save_state.clone();
    volatile_state_ = state.volatile_state.clone();
    staged_ = false;
    durable_ = !state.permanent.empty();

    Result<void> started = validate_and_init();
    volatile_state_.clear();
    if (!started) {
        // Nothing that a half-started TPM may have stored is worth more than what the caller has.
        permanent_.clear();
        save_state_.clear();
        staged_ = durable_ = false;
    }
    return started;
}

/// Asks libtpms whether it can read the blobs before it starts with them: TPM 2.0 leaves by longjmp, to nowhere at this
/// point, when TPMLIB_MainInit meets a permanent state that it cannot read.
Result<void> LibtpmsEngine::validate_and_init() {
    const bool has_permanent = !permanent_.empty();
    const bool has_volatile = !volatile_state_.empty();
    if (!has_permanent && (has_volatile || !save_state_.empty())) {
        return make_error(Errc::corrupt, "there is {} state but no permanent state: refusing to make a fresh TPM {}",
                          has_volatile ? "volatile" : "saved", to_string(version_));
    }
    if (has_permanent) {
        if (TPM_RESULT rc = TPMLIB_ValidateState(TPMLIB_STATE_PERMANENT, 0); rc != TPM_SUCCESS) {
            Error e = make_error(Errc::corrupt, "libtpms cannot read the TPM {} permanent state of {} bytes ({:#x}){}",
                                 to_string(version_), permanent_.size(), rc, messages_.take());
            e.detail = rc;
            return e;
        }
    }
    if (TPM_RESULT rc = TPMLIB_MainInit(); rc != TPM_SUCCESS) {
        Error e =
            make_error(has_permanent ? Errc::corrupt : Errc::tpm, "libtpms cannot start this TPM {} ({:#x}){}{}",
                       to_string(version_), rc, has_volatile ? " with the volatile state given" : "", messages_.take());
        e.detail = rc;
        TPMLIB_Terminate();
        return e;
    }
    running_ = true;
    return {};
}

void LibtpmsEngine::power_off() {
    if (running_) {
        TPMLIB_Terminate();
        running_ = false;
    }
}

Bytes LibtpmsEngine::execute(ByteView command, std::uint8_t locality) {
    if (!running_) {
        return tpm::error_response(version_, tpm::Refusal::failure);
    }
    if (command.size() > command_.size()) {
        return tpm::error_response(version_, tpm::Refusal::bad_size);
    }
    if (locality > highest_locality) {
        return tpm::error_response(version_, tpm::Refusal::bad_locality);
    }
    std::copy(command.begin(), command.end(), command_.begin());
    locality_ = locality;
    std::uint32_t size = 0;
    executing_ = true;
    const TPM_RESULT rc = TPMLIB_Process(&response_, &size, &response_capacity_, uchar_ptr(MutByteView(command_)),
                                         static_cast<std::uint32_t>(command.size()));
    executing_ = false;
    cleanse(MutByteView(command_).first(command.size()));

    const ByteView answer = view_of(response_, response_ == nullptr ? 0 : size);
    Bytes out = rc == TPM_SUCCESS && tpm::is_well_formed_response(version_, answer)
                    ? to_bytes(answer)
                    : tpm::error_response(version_, tpm::Refusal::failure);
    if (response_ != nullptr) {
        cleanse({reinterpret_cast<std::byte*>(response_), size});
    }
    if (version_ == TpmVersion::tpm20 && tpm::tells_clock(tpm::peek_header(command).code) &&
        tpm::peek_header(out).code == 0) {
        stage_clock();
    }
    if (rc != TPM_SUCCESS || tpm::peek_header(out).code == tpm::refusal_code(version_, tpm::Refusal::failure)) {
        note_failure(rc);
    }
    return out;
}

/// libtpms keeps the clock in its NV memory, every 4,096 ms (TPM_PT_CLOCK_UPDATE) and when it is set, but stores that
/// memory only when something else has changed. Whoever was told the clock must not see it go back further than that.
void LibtpmsEngine::stage_clock() {
    TpmBuffer now;
    if (TPMLIB_GetState(TPMLIB_STATE_PERMANENT, &now.data, &now.size) == TPM_SUCCESS && now.size != 0 &&
        !permanent_.equals(now.view())) {
        staged_ = stage(permanent_, now.view()) || staged_;
    }
}

/// A TPM in failure mode answers every command so; libtpms says why the first time only.
void LibtpmsEngine::note_failure(TPM_RESULT rc) {
    const std::string said = messages_.take();
    if (failure_.empty() || !said.empty()) {
        failure_ = fmt::format("{:#x}{}", rc, said);
    }
}

void LibtpmsEngine::cancel() {
    if (executing_) {
        TPMLIB_CancelCommand();
    }
}

std::optional<EngineState> LibtpmsEngine::take_staged() {
    if (!staged_) {
        return std::nullopt;
    }
    staged_ = false;
    EngineState out;
    out.permanent = permanent_.clone();
    out.save_state = save_state_.clone();
    return out;
}

void LibtpmsEngine::staged_is_durable() { durable_ = durable_ || !staged_; }

void LibtpmsEngine::staged_failed() {
    staged_ = true;
    durable_ = false;
}

Result<EngineState> LibtpmsEngine::snapshot() {
    auto now = registers();
    if (!now) {
        return now.error();
    }
    // libtpms' own view of the other two is not wanted: asked for TPM 1.2's save state it makes up what TPM_SaveState
    // would save now, although nobody asked the TPM to.
    EngineState out;
    out.permanent = permanent_.clone();
    out.save_state = save_state_.clone();
    out.volatile_state = std::move(*now);
    return out;
}

Result<SecretBytes> LibtpmsEngine::registers() {
    if (auto ok = running_or_error("taking a snapshot"); !ok) {
        return ok.error();
    }
    TpmBuffer blob;
    if (TPM_RESULT rc = TPMLIB_GetState(TPMLIB_STATE_VOLATILE, &blob.data, &blob.size); rc != TPM_SUCCESS) {
        return tpm_error(rc, "reading the volatile state");
    }
    return SecretBytes(blob.view());
}

Result<void> LibtpmsEngine::resume(const SecretBytes& volatile_state) {
    if (auto ok = running_or_error("resuming"); !ok) {
        return ok;
    }
    const bool was_staged = staged_;
    power_off();
    volatile_state_ = volatile_state.clone();
    Result<void> started = validate_and_init();
    volatile_state_.clear();
    staged_ = staged_ || was_staged;
    return started;
}

BufferSize LibtpmsEngine::buffer_size(std::uint32_t wanted) {
    BufferSize out;
    out.size = TPMLIB_SetBufferSize(wanted, &out.min, &out.max);
    return out;
}

std::string LibtpmsEngine::info(unsigned flags) const {
    char* json = TPMLIB_GetInfo(static_cast<TPMLIB_InfoFlags>(flags));
    std::string out = json == nullptr ? "{}" : json;
    std::free(json);
    return out;
}

bool LibtpmsEngine::established() const {
    TPM_BOOL set = 0;
    return running_ && TPM_IO_TpmEstablished_Get(&set) == TPM_SUCCESS && set != 0;
}

Result<void> LibtpmsEngine::reset_established(std::uint8_t locality) {
    if (auto ok = running_or_error("resetting tpmEstablished"); !ok) {
        return ok;
    }
    locality_ = locality;
    const TPM_RESULT rc = TPM_IO_TpmEstablished_Reset();
    return rc == TPM_SUCCESS ? Result<void>() : tpm_error(rc, "resetting tpmEstablished");
}

Result<void> LibtpmsEngine::hash_start() {
    if (auto ok = running_or_error("starting a hash sequence"); !ok) {
        return ok;
    }
    locality_ = highest_locality;
    const TPM_RESULT rc = TPM_IO_Hash_Start();
    return rc == TPM_SUCCESS ? Result<void>() : tpm_error(rc, "starting a hash sequence");
}

Result<void> LibtpmsEngine::hash_data(ByteView data) {
    if (auto ok = running_or_error("hashing"); !ok) {
        return ok;
    }
    const TPM_RESULT rc = TPM_IO_Hash_Data(uchar_ptr(data), static_cast<std::uint32_t>(data.size()));
    return rc == TPM_SUCCESS ? Result<void>() : tpm_error(rc, "hashing");
}

Result<void> LibtpmsEngine::hash_end() {
    if (auto ok = running_or_error("ending a hash sequence"); !ok) {
        return ok;
    }
    const TPM_RESULT rc = TPM_IO_Hash_End();
    return rc == TPM_SUCCESS ? Result<void>() : tpm_error(rc, "ending a hash sequence");
}

Result<void> LibtpmsEngine::running_or_error(std::string_view what) const {
    if (!running_) {
        return make_error(Errc::unavailable, "{}: the TPM is powered off", what);
    }
    return {};
}

TPM_RESULT LibtpmsEngine::load(unsigned char** data, std::uint32_t* length, std::string_view name) const {
    const SecretBytes* blob = nullptr;
    if (name == TPM_PERMANENT_ALL_NAME) {
        blob = &permanent_;
    } else if (name == TPM_SAVESTATE_NAME) {
        blob = &save_state_;
    } else if (name == TPM_VOLATILESTATE_NAME) {
        blob = &volatile_state_;
    }
    *data = nullptr;
    *length = 0;
    if (blob == nullptr || blob->empty()) {
        return TPM_RETRY; // "there is none"
    }
    auto* copy = static_cast<unsigned char*>(std::malloc(blob->size())); // libtpms frees it
    if (copy == nullptr) {
        return TPM_SIZE;
    }
    std::memcpy(copy, blob->data(), blob->size());
    *data = copy;
    *length = static_cast<std::uint32_t>(blob->size());
    return TPM_SUCCESS;
}

/// Never fails: a failed store puts the TPM into failure mode, and the disk is not asked yet.
TPM_RESULT LibtpmsEngine::store(ByteView data, std::string_view name) {
    if (name == TPM_PERMANENT_ALL_NAME) {
        staged_ = stage(permanent_, data) || staged_;
    } else if (name == TPM_SAVESTATE_NAME) {
        staged_ = stage(save_state_, data) || staged_;
    }
    return TPM_SUCCESS; // volatile state is taken by snapshot(), never stored
}

TPM_RESULT LibtpmsEngine::remove(std::string_view name, bool must_exist) {
    if (name != TPM_SAVESTATE_NAME || save_state_.empty()) {
        return must_exist ? TPM_FAIL : TPM_SUCCESS;
    }
    staged_ = stage(save_state_, {}) || staged_;
    return TPM_SUCCESS;
}

/// Keeps `data` as the blob's present content; false if the disk has just that.
bool LibtpmsEngine::stage(SecretBytes& kept, ByteView data) {
    if (durable_ && kept.equals(data)) {
        return false;
    }
    kept = SecretBytes(data);
    durable_ = false;
    return true;
}

} // namespace

Result<std::unique_ptr<Engine>> Engine::create(TpmVersion version) {
    auto engine = std::make_unique<LibtpmsEngine>(version);
    if (auto started = engine->start_library(); !started) {
        return started.error();
    }
    return std::unique_ptr<Engine>(std::move(engine));
}

} // namespace vtpmd
