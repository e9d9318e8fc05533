// The monotonic counter of a TPM 1.2 (TPM Main part 3 section 25). A new one starts above the highest the TPM ever had.
#include "hwtpm/tpm12/attempt.hpp"
#include "tpm/codes.hpp"
#include "util/wire.hpp"

#include <algorithm>
#include <openssl/rand.h>

namespace vtpmd::hwtpm {

namespace {

constexpr std::size_t auth_size = 20;
constexpr std::size_t label_size = 4;

/// The counter's label, by which it is found again: it tells nothing of the authorisation value.
Result<Bytes> label_of(ByteView auth) {
    auto digest = sha1({as_bytes("vtpmd counter"), auth});
    if (!digest) {
        return digest.error();
    }
    return to_bytes(ByteView(*digest).first(label_size));
}

/// TPM_COUNTER_VALUE (part 2 section 12.1): tag u16, label[4], counter u32.
Result<std::uint64_t> counter_value(WireReader& r) {
    r.skip(2 + 4);
    const std::uint64_t value = r.be32();
    return r.expect_end() ? Result<std::uint64_t>(value)
                          : Result<std::uint64_t>(make_error(Errc::protocol, "a counter's value: malformed answer"));
}

} // namespace

Error Tpm12::counter_error(Error e, const CounterRef& counter) const {
    if (e.code == Errc::tpm && (e.detail == v12::rc_bad_counter || e.detail == v12::rc_bad_parameter)) {
        return make_error(
            Errc::not_found,
            "{}: the freshness counter {:#x} is not in this TPM, or another one was stepped since the boot: "
            "cleared, or another TPM",
            device_.description(), counter.handle);
    }
    if (e.code == Errc::permission) {
        return make_error(Errc::mismatch, "{}: the counter {:#x} is not our freshness counter ({})",
                          device_.description(), counter.handle, e.message);
    }
    return e;
}

Result<CounterRef> Tpm12::counter_reserve() {
    CounterRef counter; // the TPM chooses the handle
    counter.auth.resize(auth_size);
    if (RAND_priv_bytes(uchar_ptr(MutByteView(counter.auth)), auth_size) != 1) {
        return make_error(Errc::unavailable, "no random numbers from OpenSSL");
    }
    return counter;
}

/// The handle of the counter with this label, if there is one.
Result<std::optional<std::uint32_t>> Tpm12::find_counter(ByteView label) {
    auto list = capability(v12::cap_handle, v12::rt_counter, "listing counters");
    if (!list) {
        return list.error();
    }
    WireReader handles(*list);
    for (unsigned left = handles.be16(); left > 0; --left) {
        const std::uint32_t handle = handles.be32();
        WireWriter w;
        w.be32(handle);
        auto out = client_.run({.ordinal = tpm::ord::read_counter, .parameters = w.view(), .name = "TPM_ReadCounter"});
        if (!handles.ok() || !out) {
            return out ? make_error(Errc::protocol, "listing counters: malformed answer") : out.error();
        }
        WireReader value(*out);
        value.skip(2);
        const ByteView found = value.bytes(label_size);
        if (value.ok() && std::equal(found.begin(), found.end(), label.begin(), label.end())) {
            return std::optional(handle);
        }
    }
    return std::optional<std::uint32_t>();
}

Result<CounterRef> Tpm12::counter_create(const CounterRef& reserved) {
    return attempt(Repeat::always, [&]() -> Result<CounterRef> {
        CounterRef counter = reserved;
        auto label = label_of(counter.auth);
        if (!label) {
            return label.error();
        }
        auto there = find_counter(*label);
        if (!there) {
            return there.error();
        }
        if (*there) {
            counter.handle = **there;
            return counter;
        }
        auto session = client_.osap(v12::et_owner, v12::kh_owner, config_.owner_auth);
        if (!session) {
            return session.error();
        }
        auto auth = Tpm12Client::encrypt_auth(*session, counter.auth);
        if (!auth) {
            return auth.error();
        }
        WireWriter w;
        w.bytes(*auth).bytes(*label);
        auto out =
            client_.run({.ordinal = tpm::ord::create_counter, .parameters = w.view(), .name = "TPM_CreateCounter"},
                        std::span(&*session, 1));
        if (!out && (out.error().detail == v12::rc_resources || out.error().detail == v12::rc_no_space)) {
            return make_error(Errc::no_space, "{}: the TPM's monotonic counters are all taken", device_.description());
        }
        if (!out && out.error().code == Errc::permission) {
            return in_context(out.error(), "the owner's authorisation is refused: give the right --owner-auth");
        }
        if (!out) {
            return out.error();
        }
        WireReader r(*out);
        counter.handle = r.be32();
        if (auto value = counter_value(r); !value) {
            return value.error();
        }
        return counter;
    });
}

Result<std::uint64_t> Tpm12::counter_read(const CounterRef& counter) {
    return attempt(Repeat::always, [&]() -> Result<std::uint64_t> {
        WireWriter w;
        w.be32(counter.handle);
        auto out = client_.run({.ordinal = tpm::ord::read_counter, .parameters = w.view(), .name = "TPM_ReadCounter"});
        if (!out) {
            return counter_error(out.error(), counter);
        }
        WireReader r(*out);
        return counter_value(r);
    });
}

Result<std::uint64_t> Tpm12::counter_increment(const CounterRef& counter) {
    return attempt(Repeat::if_not_executed, [&]() -> Result<std::uint64_t> {
        const SecretBytes auth{ByteView(counter.auth)};
        auto session = client_.oiap(auth);
        if (!session) {
            return session.error();
        }
        WireWriter w;
        w.be32(counter.handle);
        auto out = client_.run(
            {.ordinal = tpm::ord::increment_counter, .parameters = w.view(), .name = "TPM_IncrementCounter"},
            std::span(&*session, 1));
        if (!out) {
            return counter_error(out.error(), counter);
        }
        WireReader r(*out);
        return counter_value(r);
    });
}

Result<void> Tpm12::counter_delete(const CounterRef& counter) {
    return attempt(Repeat::if_not_executed, [&]() -> Result<void> {
        const SecretBytes auth{ByteView(counter.auth)};
        auto session = client_.oiap(auth);
        if (!session) {
            return session.error();
        }
        WireWriter w;
        w.be32(counter.handle);
        auto out =
            client_.run({.ordinal = v12::ord_release_counter, .parameters = w.view(), .name = "TPM_ReleaseCounter"},
                        std::span(&*session, 1));
        return out ? Result<void>() : Result<void>(counter_error(out.error(), counter));
    });
}

} // namespace vtpmd::hwtpm
