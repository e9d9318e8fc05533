#include "hwtpm/tpm20/tpm20.hpp"

#include "util/wire.hpp"

#include <algorithm>

namespace vtpmd::hwtpm {

namespace {

constexpr UINT32 property_batch = 64;

template <typename T>
std::uint32_t property(const TPML_TAGGED_TPM_PROPERTY& list, T which) {
    for (UINT32 i = 0; i < list.count; ++i) {
        if (list.tpmProperty[i].property == which) {
            return list.tpmProperty[i].value;
        }
    }
    return 0;
}

/// Four characters in a u32, blanks and zeros dropped (TPM_PT_MANUFACTURER and the vendor strings).
std::string four_characters(std::uint32_t v) {
    std::string out;
    for (int shift = 24; shift >= 0; shift -= 8) {
        char c = static_cast<char>((v >> shift) & 0xFF);
        if (c > 0x20 && c < 0x7F) {
            out += c;
        }
    }
    return out;
}

} // namespace

bool handles_lost(const Error& e) noexcept {
    const TSS2_RC rc = e.detail;
    return e.code == Errc::tpm &&
           (rc == TPM2_RC_INITIALIZE || (rc >= TPM2_RC_REFERENCE_H0 && rc <= TPM2_RC_REFERENCE_S6));
}

Tpm20::Tpm20(TpmDevice& device, Config config, const Log& log)
    : device_(device)
    , config_(std::move(config))
    , log_(log) {}

Tpm20::~Tpm20() { drop(); }

void Tpm20::begin_batch() {
    claimed_ = device_.claim();
    if (!claimed_ && claimed_.error().code == Errc::closed) {
        log_.info("{}: {}; starting it anew", device_.description(), claimed_.error().message);
        drop();
        claimed_ = Result<void>();
    }
}

void Tpm20::end_batch() noexcept { device_.release(); }

/// Nothing is sent: whoever calls this holds a TPM that has forgotten us.
void Tpm20::drop() noexcept {
    transient_storage_key_.forget();
    bus_session_.forget();
    storage_key_ = ESYS_TR_NONE;
    counters_.clear();
    esys_.reset();
}

Result<void> Tpm20::ready() {
    if (!claimed_) {
        return claimed_;
    }
    if (esys_ && !esys_->unusable()) {
        return {};
    }
    drop();
    if (auto r = device_.restart(); !r) {
        return r;
    }
    if (claimed_ = device_.claim(); !claimed_) {
        return claimed_;
    }
    return start();
}

Result<void> Tpm20::start() {
    if (!claimed_) {
        return claimed_;
    }
    drop();
    auto context = EsysContext::create(device_);
    if (!context) {
        return context.error();
    }
    esys_ = std::move(*context);
    Result<void> r = startup();
    if (r && device_.exclusive()) {
        r = flush_left_over();
    }
    if (r) {
        r = read_part();
    }
    if (r) {
        r = read_banks();
    }
    if (r) {
        r = open_storage_key();
    }
    if (!r) {
        transient_storage_key_.flush();
        bus_session_.flush();
        drop();
    }
    return r;
}

void Tpm20::stop() noexcept {
    if (!esys_ || esys_->unusable()) {
        drop();
        return;
    }
    bus_session_.flush();
    transient_storage_key_.flush();
    if (device_.exclusive()) {
        (void)Esys_Shutdown(esys_->get(), ESYS_TR_NONE, ESYS_TR_NONE, ESYS_TR_NONE, TPM2_SU_CLEAR);
    }
    drop();
}

Result<void> Tpm20::startup() {
    TSS2_RC rc = Esys_Startup(esys_->get(), TPM2_SU_CLEAR);
    // INITIALIZE: the firmware has done it. LOCALITY: at ours it cannot be done, so the firmware must have.
    if (rc != TSS2_RC_SUCCESS && rc != TPM2_RC_INITIALIZE && rc != TPM2_RC_LOCALITY) {
        if (rc == TPM2_RC_FAILURE) {
            return make_error(Errc::tpm, "{}: the TPM is in failure mode; power-cycle the machine",
                              device_.description());
        }
        return esys_->check(rc, "TPM2_Startup");
    }
    return {};
}

Result<std::vector<std::uint32_t>> Tpm20::handles(std::uint32_t first) {
    std::vector<std::uint32_t> out;
    const auto of_range = [first](std::uint32_t handle) {
        const std::uint32_t type = handle >> TPM2_HR_SHIFT;
        const std::uint32_t wanted = first >> TPM2_HR_SHIFT;
        // Loaded sessions are listed with the handles they have: HMAC 02, policy 03.
        return type == wanted || (wanted == TPM2_HT_LOADED_SESSION && type == TPM2_HT_POLICY_SESSION);
    };
    TPMI_YES_NO more = TPM2_YES;
    for (std::uint32_t from = first; more == TPM2_YES;) {
        TPMS_CAPABILITY_DATA* raw = nullptr;
        TSS2_RC rc = Esys_GetCapability(esys_->get(), ESYS_TR_NONE, ESYS_TR_NONE, ESYS_TR_NONE, TPM2_CAP_HANDLES, from,
                                        property_batch, &more, &raw);
        EsysPtr<TPMS_CAPABILITY_DATA> data(raw);
        if (auto r = esys_->check(rc, "listing handles"); !r) {
            return r.error();
        }
        const TPML_HANDLE& list = data->data.handles;
        for (UINT32 i = 0; i < list.count; ++i) {
            if (of_range(list.handle[i])) {
                out.push_back(list.handle[i]);
            }
        }
        if (list.count == 0) {
            break;
        }
        from = list.handle[list.count - 1] + 1;
    }
    return out;
}

/// What a process that was killed left behind: a part has room for three objects and three sessions.
Result<void> Tpm20::flush_left_over() {
    std::size_t flushed = 0;
    for (std::uint32_t first : {TPM2_TRANSIENT_FIRST, TPM2_LOADED_SESSION_FIRST}) {
        auto list = handles(first);
        if (!list) {
            return list.error();
        }
        for (std::uint32_t handle : *list) {
            WireWriter command; // ESAPI flushes only handles that it knows
            command.be16(TPM2_ST_NO_SESSIONS).be32(14).be32(TPM2_CC_FlushContext).be32(handle);
            auto answer = device_.transmit(command.view(), time_limit(command.view()));
            if (!answer) {
                return answer.error();
            }
            ++flushed;
        }
    }
    if (flushed != 0) {
        log_.info("{}: flushed {} objects and sessions that an earlier user left behind", device_.description(),
                  flushed);
    }
    return {};
}

Result<void> Tpm20::read_part() {
    TPMI_YES_NO more = TPM2_NO;
    TPMS_CAPABILITY_DATA* raw = nullptr;
    auto ask = [&] {
        return Esys_GetCapability(esys_->get(), ESYS_TR_NONE, ESYS_TR_NONE, ESYS_TR_NONE, TPM2_CAP_TPM_PROPERTIES,
                                  TPM2_PT_FIXED, property_batch, &more, &raw);
    };
    TSS2_RC rc = ask();
    if (rc == TPM2_RC_NEEDS_TEST) {
        if (auto r = esys_->check(Esys_SelfTest(esys_->get(), ESYS_TR_NONE, ESYS_TR_NONE, ESYS_TR_NONE, TPM2_YES),
                                  "self test");
            !r) {
            return r;
        }
        rc = ask();
    }
    EsysPtr<TPMS_CAPABILITY_DATA> data(raw);
    if (auto r = esys_->check(rc, "asking for the TPM's properties"); !r) {
        return r;
    }
    const TPML_TAGGED_TPM_PROPERTY& list = data->data.tpmProperties;
    std::string vendor = four_characters(property(list, TPM2_PT_VENDOR_STRING_1)) +
                         four_characters(property(list, TPM2_PT_VENDOR_STRING_2));
    const std::uint32_t firmware = property(list, TPM2_PT_FIRMWARE_VERSION_1);
    part_ = fmt::format("{} {} firmware {}.{}", four_characters(property(list, TPM2_PT_MANUFACTURER)), vendor,
                        firmware >> 16, firmware & 0xFFFF);
    return {};
}

Result<void> Tpm20::read_banks() {
    TPMI_YES_NO more = TPM2_NO;
    TPMS_CAPABILITY_DATA* raw = nullptr;
    TSS2_RC rc = Esys_GetCapability(esys_->get(), ESYS_TR_NONE, ESYS_TR_NONE, ESYS_TR_NONE, TPM2_CAP_PCRS, 0,
                                    TPM2_NUM_PCR_BANKS, &more, &raw);
    EsysPtr<TPMS_CAPABILITY_DATA> data(raw);
    if (auto r = esys_->check(rc, "asking for the PCR banks"); !r) {
        return r;
    }
    banks_.clear();
    const TPML_PCR_SELECTION& list = data->data.assignedPCR;
    for (UINT32 i = 0; i < list.count; ++i) {
        const TPMS_PCR_SELECTION& s = list.pcrSelections[i];
        const auto bank = static_cast<HashAlg>(s.hash);
        const bool allocated = std::any_of(s.pcrSelect, s.pcrSelect + s.sizeofSelect, [](BYTE b) { return b != 0; });
        if (allocated && digest_size(bank) != 0) {
            banks_.push_back(bank);
        }
    }
    std::sort(banks_.begin(), banks_.end());
    return {};
}

Result<Transient> Tpm20::new_session(TPM2_SE type) {
    const TPMT_SYM_DEF symmetric{.algorithm = TPM2_ALG_AES, .keyBits = {.aes = 128}, .mode = {.aes = TPM2_ALG_CFB}};
    ESYS_TR session = ESYS_TR_NONE;
    TSS2_RC rc = Esys_StartAuthSession(esys_->get(), storage_key_, ESYS_TR_NONE, ESYS_TR_NONE, ESYS_TR_NONE,
                                       ESYS_TR_NONE, nullptr, type, &symmetric, TPM2_ALG_SHA256, &session);
    if (auto r = esys_->check(rc, "starting a session"); !r) {
        return r.error();
    }
    return Transient(*esys_, session);
}

Result<ESYS_TR> Tpm20::bus_session(TPMA_SESSION attributes) {
    if (!bus_session_) {
        auto session = new_session(TPM2_SE_HMAC);
        if (!session) {
            return session.error();
        }
        bus_session_ = std::move(*session);
    }
    constexpr TPMA_SESSION all = 0xFF;
    TSS2_RC rc =
        Esys_TRSess_SetAttributes(esys_->get(), bus_session_.get(), attributes | TPMA_SESSION_CONTINUESESSION, all);
    if (auto r = esys_->check(rc, "setting up the session"); !r) {
        return r.error();
    }
    return bus_session_.get();
}

Result<Bytes> Tpm20::identity() {
    return attempt(Repeat::always, [&]() -> Result<Bytes> { return storage_key_name_; });
}

Result<Bytes> Tpm20::random(std::size_t count) {
    return attempt(Repeat::always, [&] { return random_once(count); });
}

Result<Bytes> Tpm20::random_once(std::size_t count) {
    Bytes out;
    while (out.size() < count) {
        auto session = bus_session(TPMA_SESSION_ENCRYPT);
        if (!session) {
            return session.error();
        }
        TPM2B_DIGEST* raw = nullptr;
        const auto want = static_cast<UINT16>(std::min<std::size_t>(count - out.size(), sizeof raw->buffer));
        TSS2_RC rc = Esys_GetRandom(esys_->get(), *session, ESYS_TR_NONE, ESYS_TR_NONE, want, &raw);
        std::unique_ptr<TPM2B_DIGEST, EsysCleanse> data(raw, EsysCleanse{sizeof(TPM2B_DIGEST)});
        if (auto r = esys_->check(rc, "TPM2_GetRandom"); !r) {
            return r.error();
        }
        if (data->size == 0 || data->size > want) {
            return make_error(Errc::protocol, "TPM2_GetRandom: {} bytes where 1 to {} were asked for", data->size,
                              want);
        }
        ByteView got = view_of(data->buffer, data->size);
        out.insert(out.end(), got.begin(), got.end());
    }
    return out;
}

} // namespace vtpmd::hwtpm
