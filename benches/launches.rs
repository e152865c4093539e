//! How many kernels a GPU is sent by the cells of the models, as a table: what an evaluation costs
//! at least, whatever the card, since each is launched by the host. `DEQ_TEST_DEVICE` names the
//! device; a software Vulkan driver counts as well as a card.
//!
//! The program starts itself once more with CubeCL's log of launches, and counts its lines.

use burn::tensor::{Device, Distribution, Tensor};
use deq_core::EquilibriumCell;
use deq_models::{
    DeqTransformerLmConfig, DropoutRates, MdeqCell, MdeqClassifierConfig, MdeqConfig,
    TransformerCell,
};
use std::hint::black_box;
use std::process::{Command, Stdio};

/// Says to the program that its launches are counted.
const COUNTED: &str = "DEQ_LAUNCHES_COUNTED";
const BEGIN: &str = "@ begin ";
const END: &str = "@ end";

fn main() {
    if std::env::var_os(COUNTED).is_some() {
        return run(&deq_testkit::test_device!());
    }
    let program = std::env::current_exe().expect("a running program has a file");
    let output = Command::new(program)
        .env(COUNTED, "1")
        .env("CUBECL_DEBUG_LOG", "stdout")
        .env("CUBECL_DEBUG_OPTION", "profile-medium")
        .stderr(Stdio::inherit())
        .output()
        .expect("a program that runs can be started");
    assert!(output.status.success(), "the counted program failed");
    report(&String::from_utf8_lossy(&output.stdout));
}

fn report(log: &str) {
    println!("| | launches | of them convolutions and products |");
    println!("| --- | ---: | ---: |");
    let mut counted: Option<(&str, usize, usize)> = None;
    for line in log.lines() {
        if let Some(what) = line.strip_prefix(BEGIN) {
            counted = Some((what, 0, 0));
        } else if line.starts_with(END) {
            let (what, launches, products) = counted.take().expect("what ends has begun");
            assert!(
                launches > 0,
                "the log has no launches: is the device a GPU?"
            );
            println!("| {what} | {launches} | {products} |");
        } else if let (Some((_, launches, products)), Some(kernel)) = (&mut counted, launch(line)) {
            *launches += 1;
            *products += usize::from(kernel.contains("Conv") || kernel.contains("Matmul"));
        }
    }
}

/// The kernel, if the line tells of a launch: `| 1.5ms | Kernel`.
fn launch(line: &str) -> Option<&str> {
    let (time, kernel) = line.trim_start().strip_prefix('|')?.split_once('|')?;
    let time = time.trim();
    let unit = time.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    (unit != time && ["s", "ms", "µs", "ns"].contains(&unit)).then_some(kernel)
}

fn run(device: &Device) {
    let valid = "the configuration is valid";
    let tracked = device.clone().autodiff();

    let config = MdeqConfig::new(vec![32, 64, 128, 256]).with_downsample_times(0);
    let config = MdeqClassifierConfig::new(10, config, vec![8, 16, 32, 64], 64);
    let cell = |device: &Device| config.init(device).expect(valid).backbone.cell;
    mdeq_in_a_solve(&cell(device), device);
    mdeq_in_training(&cell(&tracked), &tracked);

    let config = DeqTransformerLmConfig::new(100, 64, 4, 256).with_mem_len(16);
    let cell = |device: &Device| config.init(device).expect(valid).cell;
    transformer_in_a_solve(&cell(device), device);
    transformer_in_training(&cell(&tracked), &tracked);
}

/// Counts the launches of an operation once its kernels are compiled and tuned.
fn count<T>(what: &str, device: &Device, mut operation: impl FnMut() -> T) {
    let mut finished = || {
        let result = black_box(operation());
        device.sync().expect("the device works");
        drop(result);
    };
    for _ in 0..3 {
        finished();
    }
    println!("{BEGIN}{what}");
    finished();
    println!("{END}");
}

fn random<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), device)
}

/// Two images of 16 by 16 in four branches.
fn maps(cell: &MdeqCell, device: &Device) -> (Tensor<4>, Vec<Tensor<4>>) {
    let injection = random([2, 32, 16, 16], device);
    let z = cell.zeros(&injection).into_iter();
    let z = z.map(|z| random(z.dims(), device)).collect();
    (injection, z)
}

fn mdeq_in_a_solve(cell: &MdeqCell, device: &Device) {
    let (injection, z) = maps(cell, device);
    let context = cell.context(injection, 0.0);
    let linearize = || cell.pullback(z.clone(), &context).expect("it has one");
    let pullback = linearize();
    count("MDEQ of four branches: f(z)", device, || {
        cell.forward(z.clone(), &context)
    });
    count("..., what cotangents need", device, linearize);
    count("..., a cotangent", device, || pullback(z.clone()));
}

fn mdeq_in_training(cell: &MdeqCell, device: &Device) {
    let (injection, z) = maps(cell, device);
    let sum = |maps: Vec<Tensor<4>>| {
        let squares = maps.into_iter().map(|map| map.square().sum());
        squares.reduce(|sum, part| sum + part).expect("four")
    };
    count("..., f(z) recorded, and its gradients", device, || {
        let context = cell.context(injection.clone(), 0.0);
        sum(cell.forward(z.clone(), &context)).backward()
    });
    count("..., a penalty, and its gradients", device, || {
        let context = cell.context(injection.clone(), 0.0);
        let tangent = cell.tangent(z.clone(), z.clone(), &context);
        let (_, tangent) = tangent.expect("it has one");
        sum(tangent).backward()
    });
}

/// Two segments of 16 positions and as long a memory.
fn segments(device: &Device) -> (Tensor<3>, Tensor<3>, Tensor<3>) {
    let (z, memory) = (random([2, 16, 64], device), random([2, 16, 64], device));
    (random([2, 32, 192], device), memory, z)
}

fn transformer_in_a_solve(cell: &TransformerCell, device: &Device) {
    let (injection, memory, z) = segments(device);
    let context = cell.context(injection, Some(memory), DropoutRates::default());
    let linearize = || cell.pullback(z.clone(), &context).expect("it has one");
    let pullback = linearize();
    count("DEQ-Transformer: f(z)", device, || {
        cell.forward(z.clone(), &context)
    });
    count("..., what cotangents need", device, linearize);
    count("..., a cotangent", device, || pullback(z.clone()));
}

fn transformer_in_training(cell: &TransformerCell, device: &Device) {
    let (injection, memory, z) = segments(device);
    let context = || {
        cell.context(
            injection.clone(),
            Some(memory.clone()),
            DropoutRates::default(),
        )
    };
    count("..., f(z) recorded, and its gradients", device, || {
        cell.forward(z.clone(), &context())
            .square()
            .sum()
            .backward()
    });
    count("..., a penalty, and its gradients", device, || {
        let tangent = cell.tangent(z.clone(), z.clone(), &context());
        let (_, tangent) = tangent.expect("it has one");
        tangent.square().sum().backward()
    });
}
