//! Weights of the original program, read into a model of ours and used.
//!
//! `cargo run --release -p deq-examples --example import_checkpoint -- FILE`, where FILE is a
//! classifier trained by `MDEQ-Vision` of locuslab/deq, as `torch.save` or safetensors wrote it.
//! Without FILE a small one with random weights is written first, under the original's names.

use burn::tensor::{Device, Distribution, Tensor};
use deq_core::DeqConfig;
use deq_models::checkpoint::{StateDict, load, printable, save};
use deq_models::{Depth, MdeqClassifierConfig};
use std::error::Error;
use std::path::{Path, PathBuf};

// ANCHOR: import
fn import(path: &Path, device: &Device) -> Result<Tensor<2>, Box<dyn Error>> {
    // No code in the file is run. Widths, blocks, heads and classes are read off names and shapes;
    // what these cannot say comes from the second configuration.
    let file = StateDict::open(path)?;
    let rest = MdeqClassifierConfig::mini(10);
    let config = MdeqClassifierConfig::from_state_dict(&file, &rest)?;
    let (model, report) = load(config.init(device)?, &file)?;
    println!("{report}");
    if !report.is_complete() {
        return Err("the file does not fit the model".into());
    }

    let images = Tensor::random([2, 3, 32, 32], Distribution::Normal(0.0, 1.0), device);
    let deq = DeqConfig::new().build()?;
    let out = model.forward(images, Depth::Equilibrium(&deq));
    println!("equilibrium of {} maps", out.equilibrium.z.len());
    Ok(out.logits)
}
// ANCHOR_END: import

/// A file as the original would have it.
fn demonstration(folder: &Path, device: &Device) -> Result<PathBuf, Box<dyn Error>> {
    let path = folder.join("mdeq.safetensors");
    save(&MdeqClassifierConfig::mini(10).init(device)?, &path)?;
    Ok(path)
}

fn run(file: Option<PathBuf>) -> Result<[usize; 2], Box<dyn Error>> {
    let device = Device::flex();
    device.seed(1);
    let folder = tempfile::tempdir()?;
    let path = match file {
        Some(path) => path,
        None => demonstration(folder.path(), &device)?,
    };
    for tensor in StateDict::open(&path)?.infos().take(5) {
        println!("{:45} {:?}", printable(&tensor.name), tensor.shape);
    }
    println!("...");
    let logits = import(&path, &device)?;
    println!("scores {:?}", logits.dims());
    Ok(logits.dims())
}

fn main() -> Result<(), Box<dyn Error>> {
    run(std::env::args_os().nth(1).map(PathBuf::from))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_file_with_the_original_names_is_read() -> Result<(), Box<dyn std::error::Error>> {
        assert_eq!(super::run(None)?, [2, 10]);
        Ok(())
    }
}
