// The instance's image: a superblock and two slots on a BlockFile. A save encrypts the TPM's state under a fresh key
// into the slot that is not valid now; the key and the slot's hash go to the manager, whose durable yes makes that slot
// the valid one. The layout stands beside its codec in state_image.cpp.
#pragma once

#include "tpm/version.hpp"
#include "util/block_file.hpp"
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

class StateImage {
  public:
    /// Writes a new, empty image (no slot is valid). Errc::exists if the place holds anything that is not zero.
    static Task<Result<std::unique_ptr<StateImage>>> create(std::unique_ptr<BlockFile> file, ImageIdentity identity);
    /// Reads the superblock. Errc::not_ours, version, corrupt, or mismatch (another UUID or TPM version; names both).
    static Task<Result<std::unique_ptr<StateImage>>> open(std::unique_ptr<BlockFile> file, ImageIdentity expected);
    /// The identity in an image's superblock, for tools and messages.
    static Task<Result<ImageIdentity>> identify(BlockFile& file);
    virtual ~StateImage() = default;

    /// Decrypts the slot that `hash_key` names. Errc::rollback/mismatch if no slot has that hash (names the slots'
    /// sequence numbers), Errc::corrupt if the hash fits but the content does not authenticate. That slot becomes the
    /// valid one.
    virtual Task<Result<SecretBytes>> load(ByteView hash_key) = 0;

    /// Encrypts and writes `state` to the slot that is not valid, durably, and returns the hash_key for the manager.
    /// The valid slot is untouched. Errc::no_space or too_large come before anything is overwritten. Until accept() or
    /// reject(), a second prepare() is refused (Errc::busy).
    virtual Task<Result<SecretBytes>> prepare(ByteView state) = 0;
    /// The manager said its durable yes: the prepared slot is now the valid one.
    virtual void accept() = 0;
    /// The manager certainly did not take it: the old slot stays valid, the prepared one is free again.
    virtual void reject() = 0;

    /// True once any prepare() was ever accepted for this image, as far as the disk tells: an image with state must
    /// never be replaced by a fresh TPM, even if the manager knows nothing of it.
    [[nodiscard]] virtual bool had_state() const = 0;
    [[nodiscard]] virtual const ImageIdentity& identity() const = 0;
    [[nodiscard]] virtual const std::string& path() const = 0;
};

} // namespace vtpmd::store
