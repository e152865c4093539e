//! A stream of frames: every solve starts from the equilibrium of the frame before.
//!
//! `cargo run --release -p deq-examples --example warm_start`

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Initializer, PaddingConfig2d};
use burn::tensor::{Device, Tensor, TensorData};
use deq_core::solvers::StopConfig;
use deq_core::{DeqConfig, DeqError, EquilibriumCell};

const CHANNELS: usize = 4;
const SIDE: usize = 16;

/// `f(z) = tanh(conv(z) + frame)`.
#[derive(Module, Debug)]
struct Cell {
    conv: Conv2d,
}

impl EquilibriumCell for Cell {
    type State = Tensor<4>;
    type Context = Tensor<4>;

    fn forward(&self, z: Tensor<4>, frame: &Tensor<4>) -> Tensor<4> {
        (self.conv.forward(z) + frame.clone()).tanh()
    }
}

/// A bright spot that moves by a quarter of a pixel from frame to frame.
fn frame(number: usize, device: &Device) -> Tensor<4> {
    let centre = 5.0 + 0.25 * number as f32;
    let pixel = |at: usize| {
        let (x, y) = ((at % SIDE) as f32 - centre, (at / SIDE) as f32 - 8.0);
        (-(x * x + y * y) / 8.0).exp()
    };
    let pixels: Vec<f32> = (0..CHANNELS * SIDE * SIDE)
        .map(|at| pixel(at % (SIDE * SIDE)))
        .collect();
    Tensor::from_data(TensorData::new(pixels, [1, CHANNELS, SIDE, SIDE]), device)
}

fn main() -> Result<(), DeqError> {
    let device = Device::flex();
    device.seed(4);
    let conv = Conv2dConfig::new([CHANNELS, CHANNELS], [3, 3])
        .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
        .with_initializer(Initializer::Normal {
            mean: 0.0,
            std: 0.08,
        });
    let cell = Cell {
        conv: conv.init(&device),
    };
    let deq = DeqConfig::new()
        .with_stop(StopConfig::new().with_max_steps(60))
        .build()?;

    println!("frame   from zero   from the frame before   (evaluations)");
    let (mut colds, mut warms) = (0, 0);
    // ANCHOR: stream
    let mut z = Tensor::zeros([1, CHANNELS, SIDE, SIDE], &device);
    for number in 0..12 {
        let frame = frame(number, &device);
        let warm = deq.forward(&cell, &frame, z);
        z = warm.z;
        // ANCHOR_END: stream
        let cold = deq.forward(&cell, &frame, z.zeros_like());
        println!("{number:5} {:11} {:23}", cold.nfe, warm.nfe);
        (colds, warms) = (colds + cold.nfe, warms + warm.nfe);
        let apart = (cold.z - z.clone()).square().sum() / z.clone().square().sum();
        assert!(apart.into_scalar::<f32>() < 1e-3, "another equilibrium");
    }
    println!("  all {colds:11} {warms:23}");
    assert!(warms < colds);
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_frame_before_saves_evaluations() -> Result<(), deq_core::DeqError> {
        super::main()
    }
}
