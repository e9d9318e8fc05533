#include "engine/pcr_preset.hpp"

#include "tpm/commands.hpp"

#include <algorithm>
#include <map>
#include <openssl/rand.h>
#include <vector>

namespace vtpmd {

namespace {

constexpr auto sha1_size = tpm::sha1_size;

/// The value that a PCR has now, after the extend, and the one it shall have.
struct Replacement {
    const PcrPreset* preset = nullptr;
    Bytes marker;
};

std::string name_of(const PcrPreset& p) { return fmt::format("PCR {} of bank {:#06x}", p.index, p.alg); }

/// PCRs 17-22 take extends from locality 2 (among others), the rest from any. TPM Main part 2 section 8, PC Client TIS;
/// PC Client platform TPM profile for TPM 2.0 section 4.6.
std::uint8_t locality_for(unsigned pcr) noexcept { return pcr >= 17 && pcr <= 22 ? 2 : 0; }

Result<void> check_presets(std::span<const PcrPreset> presets) {
    for (std::size_t i = 0; i < presets.size(); ++i) {
        const PcrPreset& p = presets[i];
        const std::size_t size = tpm::digest_size(p.alg);
        if (p.index >= tpm::pcr_count || size == 0 || p.digest.size() != size) {
            return make_error(Errc::usage, "{} cannot be set to a value of {} bytes", name_of(p), p.digest.size());
        }
        const auto same = [&p](const PcrPreset& q) { return p.alg == q.alg && p.index == q.index; };
        if (std::any_of(presets.begin(), presets.begin() + static_cast<std::ptrdiff_t>(i), same)) {
            return make_error(Errc::usage, "{} is given twice", name_of(p));
        }
    }
    return {};
}

Result<std::vector<tpm::PcrBank>> banks_of(Engine& engine) {
    if (engine.version() == TpmVersion::tpm12) {
        return std::vector<tpm::PcrBank>{{tpm::alg::sha1, (1U << tpm::pcr_count) - 1}};
    }
    return tpm::parse_capability_pcrs(engine.execute(tpm::get_capability_pcrs_command(), 0));
}

Result<Bytes> random_bytes(std::size_t n) {
    Bytes out(n);
    if (RAND_bytes(uchar_ptr(MutByteView(out)), static_cast<int>(n)) != 1) {
        return make_error(Errc::unavailable, "no random bytes");
    }
    return out;
}

/// Extends one TPM 1.2 PCR with something random; its answer is the new value.
Result<void> mark_12(Engine& engine, std::vector<Replacement>& banks) {
    const unsigned pcr = banks.front().preset->index;
    auto random = random_bytes(sha1_size);
    if (!random) {
        return random.error();
    }
    tpm::Sha1Digest digest{};
    std::copy(random->begin(), random->end(), digest.begin());
    auto value = tpm::parse_pcr_value(engine.execute(tpm::extend_command(pcr, digest), locality_for(pcr)));
    if (!value) {
        return in_context(value.error(), fmt::format("extending PCR {}", pcr));
    }
    banks.front().marker = to_bytes(*value);
    return {};
}

/// Extends one TPM 2.0 PCR in the banks asked for, and reads what has become of it.
Result<void> mark_20(Engine& engine, std::vector<Replacement>& banks) {
    const unsigned pcr = banks.front().preset->index;
    std::vector<tpm::HashValue> values;
    std::vector<tpm::PcrBank> selection;
    for (const Replacement& b : banks) {
        auto random = random_bytes(b.preset->digest.size());
        if (!random) {
            return random.error();
        }
        values.push_back({b.preset->alg, std::move(*random)});
        selection.push_back({b.preset->alg, 1U << pcr});
    }
    const std::string what = fmt::format("extending PCR {}", pcr);
    const Bytes extended = engine.execute(tpm::pcr_extend_command(pcr, values), locality_for(pcr));
    if (auto ok = tpm::check_response(extended, what); !ok) {
        return ok;
    }
    auto reply = tpm::parse_pcr_read(engine.execute(tpm::pcr_read_command(selection), 0));
    if (!reply) {
        return in_context(reply.error(), what);
    }
    if (reply->banks != selection || reply->digests.size() != banks.size()) {
        return make_error(Errc::protocol, "{}: the TPM does not say what it has become in every bank", what);
    }
    for (std::size_t i = 0; i < banks.size(); ++i) {
        banks[i].marker = std::move(reply->digests[i]);
    }
    return {};
}

/// Overwrites the one place in `blob` that holds the marker.
Result<void> replace(MutByteView blob, const Replacement& r) {
    const auto first = std::search(blob.begin(), blob.end(), r.marker.begin(), r.marker.end());
    const bool found = first != blob.end();
    const bool again = found && std::search(first + 1, blob.end(), r.marker.begin(), r.marker.end()) != blob.end();
    if (!found || again) {
        return make_error(Errc::corrupt,
                          "{} is {} in the TPM's volatile state of {} bytes: this libtpms keeps it "
                          "in another way, its PCRs cannot be set",
                          name_of(*r.preset), found ? "more than once" : "not", blob.size());
    }
    std::copy(r.preset->digest.begin(), r.preset->digest.end(), first);
    return {};
}

/// Both families end their volatile blob with the SHA-1 of all that comes before.
Result<void> edit(MutByteView blob, const std::vector<Replacement>& replacements) {
    if (blob.size() < sha1_size) {
        return make_error(Errc::corrupt, "the TPM's volatile state has {} bytes only", blob.size());
    }
    const MutByteView body = blob.first(blob.size() - sha1_size);
    const MutByteView sum = blob.last(sha1_size);
    auto before = tpm::sha1({body});
    if (!before) {
        return before.error();
    }
    if (!std::equal(sum.begin(), sum.end(), before->begin())) {
        return make_error(Errc::corrupt, "the TPM's volatile state does not end with its SHA-1: this libtpms writes "
                                         "another format, its PCRs cannot be set");
    }
    for (const Replacement& r : replacements) {
        if (auto ok = replace(body, r); !ok) {
            return ok;
        }
    }
    auto after = tpm::sha1({body});
    if (!after) {
        return after.error();
    }
    std::copy(after->begin(), after->end(), sum.begin());
    return {};
}

} // namespace

Result<unsigned> preset_pcrs(Engine& engine, std::span<const PcrPreset> presets) {
    if (auto ok = check_presets(presets); !ok) {
        return ok.error();
    }
    auto banks = banks_of(engine);
    if (!banks) {
        return banks.error();
    }
    std::map<unsigned, std::vector<Replacement>> by_pcr;
    for (const PcrPreset& p : presets) {
        const auto has = [&p](const tpm::PcrBank& b) { return b.alg == p.alg && (b.pcrs >> p.index & 1U) != 0; };
        if (std::any_of(banks->begin(), banks->end(), has)) {
            by_pcr[p.index].push_back({&p, {}});
        }
    }
    std::vector<Replacement> all;
    for (auto& [pcr, replacements] : by_pcr) {
        auto marked =
            engine.version() == TpmVersion::tpm12 ? mark_12(engine, replacements) : mark_20(engine, replacements);
        if (!marked) {
            return marked.error();
        }
        std::move(replacements.begin(), replacements.end(), std::back_inserter(all));
    }
    if (all.empty()) {
        return 0U;
    }
    auto state = engine.snapshot();
    if (!state) {
        return state.error();
    }
    if (auto ok = edit(state->volatile_state.mut(), all); !ok) {
        return ok.error();
    }
    if (auto ok = engine.resume(state->volatile_state); !ok) {
        return in_context(ok.error(), "starting with the PCRs set");
    }
    return static_cast<unsigned>(all.size());
}

} // namespace vtpmd
