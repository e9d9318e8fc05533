// The instance's image: a superblock and two slots on a BlockFile. A save encrypts the TPM's state under a fresh key into
// the slot that is not valid now; the key and the slot's hash go to the manager, whose durable yes makes that slot the
// valid one. The layout stands beside its codec in state_image.cpp.
#pragma once

#include "tpm/version.hpp"
#include "util/block_file.hpp"
#include "util/log.hpp"
#include "util/secret_bytes.hpp"
#include "util/uuid.hpp"

#include <array>
#include <memory>
#include <optional>

namespace vtpmd::store {

/// What the manager keeps for a vTPM: AES-256 key[32] || SHA-256 of the slot as written[32].
inline constexpr std::size_t hash_key_size = 64;

struct ImageIdentity {
    Uuid uuid;
    TpmVersion version = TpmVersion::tpm20;
};

/// Bytes of state that fit in a slot of an image file; a small block device may hold less.
inline constexpr std::size_t max_state_size = 1'048'576 - 4096;

/// One coroutine at a time uses an image. Its operations run to their end even if the calling task is cancelled.
class StateImage {
  public:
    /// Writes a new, empty image (no slot is valid). Errc::exists if the place holds anything but zeros or the beginning of
    /// a creation that was cut short.
    static Task<Result<std::unique_ptr<StateImage>>> create(std::unique_ptr<BlockFile> file, ImageIdentity identity,
                                                            const Log& log);
    /// Reads the superblock. Errc::not_ours, version, corrupt, or mismatch (another UUID or TPM version; names both).
    static Task<Result<std::unique_ptr<StateImage>>> open(std::unique_ptr<BlockFile> file, ImageIdentity expected,
                                                          const Log& log);
    /// The identity in an image's superblock, for tools and messages.
    static Task<Result<ImageIdentity>> identify(BlockFile& file);
    virtual ~StateImage() = default;

    /// Decrypts the slot that `hash_key` names; that slot becomes the valid one, and a save whose fate was unknown is
    /// settled. Errc::rollback if the slots are whole but none has that hash: the image or the manager's record is an older
    /// copy (names the slots' sequence numbers). Errc::corrupt if a slot is damaged, Errc::mismatch if there is no save.
    virtual Task<Result<SecretBytes>> load(ByteView hash_key) = 0;

    /// Encrypts and writes `state` to the slot that is not valid, durably, and returns the hash_key for the manager. The
    /// valid slot is untouched. Errc::no_space or too_large come before anything is overwritten. After any error no save is
    /// pending. Until accept() or reject() (or load()), a second prepare() is refused (Errc::busy). An image that had state
    /// must be loaded first (Errc::usage).
    virtual Task<Result<SecretBytes>> prepare(ByteView state) = 0;
    /// The manager said its durable yes: the prepared slot is now the valid one, whatever is returned. The first time, this
    /// marks the image as one that has had state; an error is that of writing the mark, which the next accept() tries
    /// again: the guest must not be told yes before it is there.
    virtual Task<Result<void>> accept() = 0;
    /// The manager certainly did not take it: the old slot stays valid, the prepared one is free again. If the manager's
    /// answer was lost, call neither: ask it for the record again and load().
    virtual void reject() = 0;
    /// It is not known whether the manager took it, and it is not to count: durably notes that whoever loads with the prepared key
    /// finds the state that is valid now. After that the prepared slot is free again. After an error nothing has changed.
    /// Errc::usage: there is no state to go back to.
    virtual Task<Result<void>> withdraw() = 0;

    /// Whether a slot has this hash (the second part of a hash key), whoever may have its key.
    virtual Task<Result<bool>> holds(ByteView slot_hash) = 0;
    /// Instead of load(), only where the manager says that the vTPM was reset to factory and its state with this hash was given
    /// up: takes that slot for the valid one, so that the first save goes to the other; once that is accepted the state that
    /// was given up is zeroed. False: no slot has the hash, and nothing has changed.
    virtual Task<Result<bool>> give_up(ByteView slot_hash) = 0;

    /// True once any prepare() was ever accepted for this image: an image with state must never be replaced by a fresh TPM,
    /// even if the manager knows nothing of it. While it is false and the manager has no record, the image can be used as
    /// it is for a fresh TPM.
    [[nodiscard]] virtual bool had_state() const = 0;
    [[nodiscard]] virtual const ImageIdentity& identity() const = 0;
    [[nodiscard]] virtual const std::string& path() const = 0;
};

} // namespace vtpmd::store
