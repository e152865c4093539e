//! What a device is to a program: the processor it runs on, or a card that it sends work to.

use burn::tensor::Device;
use std::path::PathBuf;

/// Whether the device is the processor that the program runs on, by the CPU backend: work is done
/// when an operation returns, a result costs nothing to read, and products are taken in the type of
/// the tensors.
///
/// On others work is queued and a read waits for it, kernels are compiled when they are first used
/// for shapes of a kind, and products of f32 matrices may be rounded to TF32.
pub fn on_host(device: &Device) -> bool {
    #[cfg(feature = "flex")]
    return device.clone().inner() == Device::flex();
    #[cfg(not(feature = "flex"))]
    {
        let _ = device;
        false
    }
}

/// Keeps kernels that are compiled and tuned for a GPU in the user's cache folder, so that another
/// start of the program begins with them, and returns the folder.
///
/// The folder is `deq` in `$XDG_CACHE_HOME`, else in `~/.cache`, on macOS in `~/Library/Caches`,
/// on Windows in `%LOCALAPPDATA%`. Call it before the first tensor on a GPU is made. Nothing
/// changes, and the answer is `None`:
///
/// - where a `cubecl.toml`, or a `burn.toml` with a section `cubecl`, lies in the working folder or
///   one above it, which then says where kernels are kept;
/// - where CubeCL has been configured by the program or has been used before;
/// - where no such folder is known, and without a feature of a GPU.
///
/// Environment variables that CubeCL knows are heeded in either case.
pub fn keep_kernels() -> Option<PathBuf> {
    #[cfg(feature = "_gpu")]
    return crate::gpu::kept::keep_kernels();
    #[cfg(not(feature = "_gpu"))]
    None
}
