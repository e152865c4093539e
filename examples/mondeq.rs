//! A trained monotone equilibrium network on the MNIST test images, solved by every method.
//!
//! `cargo run --release -p deq-examples --example mondeq -- FOLDER [MNIST-FOLDER]`, where FOLDER
//! holds `mondeq_quant_mnist_float.safetensors` and its `.golden.safetensors` with recorded
//! predictions, and MNIST-FOLDER (default `FOLDER/../mnist`) the test images and labels.
//!
//! The layer expands (its Jacobian's spectral radius is 1.64 at the equilibria), so plain iteration
//! does not settle, although the equilibrium exists and is unique.

use burn::tensor::{Device, Tensor, TensorData, activation::softplus};
use deq_core::solvers::{
    MonotoneLayer, Solution, Solve, SolverConfig, SplittingConfig, StopConfig, StopRule,
};
use deq_examples::idx;
use safetensors::SafeTensors;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Instant;

const IMAGES: usize = 10_000;
const PIXELS: usize = 784;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let folder = arguments
        .next()
        .ok_or("usage: mondeq FOLDER [MNIST-FOLDER]")?;
    let mnist = arguments.next().unwrap_or_else(|| folder.join("../mnist"));
    let device = Device::flex();
    let network = Network::open(
        &folder.join("mondeq_quant_mnist_float.safetensors"),
        &device,
    )?;
    let images = idx(&mnist.join("t10k-images-idx3-ubyte"), 16, IMAGES * PIXELS)?;
    let labels = idx(&mnist.join("t10k-labels-idx1-ubyte"), 8, IMAGES)?;
    let golden = std::fs::read(folder.join("mondeq_quant_mnist_float.golden.safetensors"))?;
    let golden = SafeTensors::deserialize(&golden)?;
    let recorded = golden.tensor("pred_all")?.data().to_vec();

    let pixels = images
        .iter()
        .map(|&p| (f32::from(p) / 255.0 - 0.1307) / 0.3081);
    let x = TensorData::new(pixels.collect::<Vec<f32>>(), [IMAGES, PIXELS]);
    let layer = network.layer(Tensor::from_data(x, &device));
    let z0 = Tensor::<2>::zeros([IMAGES, 100], &device);
    let stop = StopConfig::new()
        .with_rel_tol(1e-5)
        .with_max_steps(400)
        .build()?;

    println!("{IMAGES} images, relative tolerance 1e-5 per image, at most 400 evaluations\n");
    println!(
        "method             evaluations   mean  converged  seconds   accuracy  not as recorded"
    );
    for method in methods()? {
        let start = Instant::now();
        let solution = method.solve(&layer, z0.clone(), &stop);
        let seconds = start.elapsed().as_secs_f64();
        let converged = solution.stats.status_counts().converged;
        let answer = if converged == IMAGES {
            let (accuracy, differing) =
                judge(network.logits(solution.z.clone()), &labels, &recorded);
            format!("{accuracy:8.2}% {differing:16}")
        } else {
            format!("{:>9}  not converged: no answer", "-")
        };
        println!(
            "{:18} {:11} {:6.1} {:10} {:8.2} {answer}",
            method.name(),
            solution.stats.nfe,
            solution.stats.mean_steps(),
            converged,
            seconds,
        );
    }
    Ok(())
}

/// A general solver on `f`, or a splitting that knows the layer's parts.
enum Method {
    General(std::sync::Arc<dyn Solve>),
    Splitting(deq_core::solvers::Splitting),
}

fn methods() -> Result<Vec<Method>, Box<dyn Error>> {
    Ok(vec![
        Method::General(SolverConfig::picard().build()?),
        Method::Splitting(SplittingConfig::forward_backward(0.4).build()?),
        Method::Splitting(SplittingConfig::peaceman_rachford().build()?),
        Method::General(SolverConfig::anderson().build()?),
        Method::General(SolverConfig::broyden().build()?),
    ])
}

impl Method {
    fn name(&self) -> &'static str {
        match self {
            Method::General(solver) => solver.name(),
            Method::Splitting(splitting) => splitting.name(),
        }
    }

    fn solve(&self, layer: &MonotoneLayer, z0: Tensor<2>, stop: &StopRule) -> Solution {
        match self {
            Method::General(solver) => solver.solve(&mut |z: Tensor<2>| layer.call(&z), z0, stop),
            Method::Splitting(splitting) => splitting.solve(layer, z0, stop),
        }
    }
}

/// `z = relu(W z + U x + b)` with `W = (1 - m) I - A^T A + S - S^T`, and a linear classifier on z.
struct Network {
    w: Tensor<2>,
    u: Tensor<2>,
    b: Tensor<2>,
    classifier: Tensor<2>,
    bias: Tensor<2>,
}

impl Network {
    fn open(path: &Path, device: &Device) -> Result<Self, Box<dyn Error>> {
        let bytes = std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let file = SafeTensors::deserialize(&bytes)?;
        let matrix = |name: &str| -> Result<Tensor<2>, Box<dyn Error>> {
            let view = file.tensor(name)?;
            let words = view.data().as_chunks::<4>().0;
            let values: Vec<f32> = words.iter().map(|w| f32::from_le_bytes(*w)).collect();
            let shape = match *view.shape() {
                [rows, columns] => [rows, columns],
                _ => [1, values.len()],
            };
            Ok(Tensor::from_data(TensorData::new(values, shape), device))
        };
        let (a, s) = (matrix("mon.core.A")?, matrix("mon.core.S")?);
        let m = softplus(matrix("mon.core.m_raw")?, 1.0) + 1e-4;
        let eye = Tensor::<2>::eye(100, device);
        Ok(Self {
            w: eye * (m.neg() + 1.0) - a.clone().transpose().matmul(a) + s.clone() - s.transpose(),
            u: matrix("mon.core.U")?,
            b: matrix("mon.core.b")?,
            classifier: matrix("classifier.weight")?,
            bias: matrix("classifier.bias")?,
        })
    }

    fn layer(&self, x: Tensor<2>) -> MonotoneLayer {
        let bias = x.matmul(self.u.clone().transpose()) + self.b.clone();
        MonotoneLayer::new(self.w.clone(), bias)
    }

    fn logits(&self, z: Tensor<2>) -> Tensor<2> {
        z.matmul(self.classifier.clone().transpose()) + self.bias.clone()
    }
}

/// The accuracy in per cent, and how many predictions are not the recorded ones.
fn judge(logits: Tensor<2>, labels: &[u8], recorded: &[u8]) -> (f64, usize) {
    let answers = logits.argmax(1).into_data();
    let answers: Vec<u8> = answers.iter::<i64>().map(|class| class as u8).collect();
    let equal = |to: &[u8]| answers.iter().zip(to).filter(|(a, b)| a == b).count();
    let right = equal(labels) as f64 / labels.len() as f64;
    (100.0 * right, recorded.len() - equal(recorded))
}
