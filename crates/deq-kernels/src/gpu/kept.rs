//! Where kernels for GPUs are kept once they are compiled and tuned.

use burn_cubecl::cubecl::config::cache::CacheConfig;
use burn_cubecl::cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
use std::path::{Path, PathBuf};

/// Keeps kernels in `user_folder`, unless whoever runs the program has settled it otherwise.
pub(crate) fn keep_kernels() -> Option<PathBuf> {
    let here = std::env::current_dir();
    if here.is_ok_and(|folder| is_configured(&folder)) {
        return None;
    }
    let folder = user_folder()?.join("deq");
    let mut config = CubeClRuntimeConfig::default();
    config.compilation.cache = true;
    config.environment.path = CacheConfig::Directory(folder.clone());
    CubeClRuntimeConfig::try_set(config.override_from_env()).then_some(folder)
}

/// Whether CubeCL would find a configuration from this folder.
fn is_configured(folder: &Path) -> bool {
    folder.ancestors().any(|folder| {
        let mut whole = CubeClRuntimeConfig::file_names().iter();
        let mut parts = CubeClRuntimeConfig::section_file_names().iter();
        whole.any(|name| CubeClRuntimeConfig::from_file_path(folder.join(name)).is_ok())
            || parts.any(|(name, section)| {
                CubeClRuntimeConfig::from_section_file_path(folder.join(name), section).is_ok()
            })
    })
}

/// Where the platform has programs keep what they can make again.
fn user_folder() -> Option<PathBuf> {
    let (variable, in_home) = match () {
        () if cfg!(windows) => ("LOCALAPPDATA", "AppData/Local"),
        () if cfg!(target_os = "macos") => ("XDG_CACHE_HOME", "Library/Caches"),
        () => ("XDG_CACHE_HOME", ".cache"),
    };
    let named = std::env::var_os(variable).map(PathBuf::from);
    let named = named.filter(|folder| folder.is_absolute());
    named.or_else(|| std::env::home_dir().map(|home| home.join(in_home)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_found_in_the_folder_and_above_it() {
        let folder = std::env::temp_dir().join(format!("deq-kept-{}", std::process::id()));
        let below = folder.join("project");
        std::fs::create_dir_all(&below).expect("the folder for temporary files can be written");
        let write = |text: &str| std::fs::write(folder.join("burn.toml"), text).expect("likewise");
        assert!(!is_configured(&below));
        write("[fusion]\n");
        assert!(!is_configured(&below));
        write("[cubecl.compilation]\ncache = false\n");
        assert!(is_configured(&below));
        std::fs::remove_dir_all(&folder).expect("it was written here");
    }
}
