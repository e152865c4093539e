//! What a training step takes on several devices, on paper.
//!
//! ```text
//! step(n) = ceil(B / n) * t + (n - 1) * (1 + g) * 4 P / bandwidth
//! ```
//!
//! for a batch of `B` samples, each of which takes `t` seconds on one device, and a model of `P`
//! parameters in f32. The first device sends the weights to all others over one link, the 1 in
//! `1 + g`. What the gradients take is `g`: 1 where the first device receives them all, and `2 / n`
//! where NCCL adds them up among the CUDA devices of a machine, taken to be in a ring, in which
//! each link carries `2 (n - 1) / n * 4 P` bytes. Were the weights not sent, since every device
//! made the step, an exchange would take the ring alone, whatever the number of devices.

use serde::Serialize;

/// A training, as far as the model knows it.
#[derive(Clone, Debug, Serialize)]
pub struct Workload {
    /// Its name.
    pub name: &'static str,
    /// Trained numbers, in f32.
    pub parameters: f64,
    /// Samples, or streams of text, in a batch.
    pub batch: usize,
    /// Seconds of a training step per sample on one device.
    pub sample_seconds: f64,
    /// Where that comes from.
    pub source: &'static str,
}

/// What connects the first device to the others.
#[derive(Clone, Debug, Serialize)]
pub struct Link {
    /// Its name.
    pub name: &'static str,
    /// Bytes per second in one direction that programs see.
    pub bandwidth: f64,
    /// Whether it connects the CUDA devices of one machine, which add up gradients by NCCL.
    pub nccl: bool,
}

/// Four fifths of the nominal rates, which is what transfers of some megabytes reach.
pub const LINKS: [Link; 4] = [
    Link {
        name: "NVLink 4",
        bandwidth: 0.8 * 450e9,
        nccl: true,
    },
    Link {
        name: "PCIe 4 x16",
        bandwidth: 0.8 * 32e9,
        nccl: true,
    },
    Link {
        name: "100 Gb/s",
        bandwidth: 0.8 * 12.5e9,
        nccl: false,
    },
    Link {
        name: "10 Gb/s",
        bandwidth: 0.8 * 1.25e9,
        nccl: false,
    },
];

/// The trainings of the papers that were made on several GPUs.
pub const WORKLOADS: [Workload; 2] = [
    Workload {
        name: "wt103-jr",
        parameters: 98e6,
        batch: 56,
        // Twelve evaluations forward, thirteen products backward at twice the cost of one, and on
        // 35 % of the steps a penalty of about three.
        sample_seconds: 0.150 / 14.0 * (12.0 + 2.0 * 13.0 + 0.35 * 3.0) / 12.0,
        source: "12 evaluations forward, 14 streams, memory 300, took 150 ms on an H100 in f32 \
                 with this code before it had kernels for GPUs; the rest of the step by their \
                 number",
    },
    Workload {
        name: "imagenet-small-jr",
        parameters: 18.6e6,
        batch: 128,
        sample_seconds: (0.364 + 0.08 * (0.478 - 0.364)) / 32.0,
        source: "a step on 32 images took 364 ms on an H100 in f32, 478 ms with the penalty, with \
                 the original's code",
    },
];

/// One number of devices over one link.
#[derive(Clone, Debug, Serialize)]
pub struct ScalingRow {
    /// Devices.
    pub devices: usize,
    /// Seconds of the step: its forward and backward passes.
    pub compute: f64,
    /// Seconds for gradients and weights.
    pub exchange: f64,
    /// Seconds that an all-reduce in a ring would take instead, if no weights were sent.
    pub all_reduce: f64,
    /// The time of one device over that of all of them, divided by their number.
    pub efficiency: f64,
    /// The smallest batch with an efficiency of 90 %.
    pub batch: usize,
}

impl Workload {
    /// The bytes of weights that the first device sends in a step, and of gradients that it
    /// receives where they are not added up by NCCL.
    pub fn bytes(&self, devices: usize) -> f64 {
        4.0 * self.parameters * (devices as f64 - 1.0)
    }

    /// A step on so many devices, at least one, over a link.
    pub fn on(&self, devices: usize, link: &Link) -> ScalingRow {
        let compute = self.batch.div_ceil(devices) as f64 * self.sample_seconds;
        let weights = self.bytes(devices) / link.bandwidth;
        let all_reduce = 2.0 / devices as f64 * weights;
        let gradients = if link.nccl { all_reduce } else { weights };
        let exchange = gradients + weights;
        let alone = self.batch as f64 * self.sample_seconds;
        // compute / (compute + exchange) = 0.9, with equal parts.
        let samples = 9.0 * exchange / self.sample_seconds;
        ScalingRow {
            devices,
            compute,
            exchange,
            all_reduce,
            efficiency: alone / (devices as f64 * (compute + exchange)),
            batch: devices * samples.ceil().max(1.0) as usize,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_takes_its_slowest_part_and_the_exchange() {
        let work = Workload {
            name: "toy",
            parameters: 1e6,
            batch: 10,
            sample_seconds: 0.1,
            source: "",
        };
        let link = Link {
            name: "slow",
            bandwidth: 1e7,
            nccl: false,
        };
        let one = work.on(1, &link);
        assert!((one.compute - 1.0).abs() < 1e-12 && one.exchange.abs() < 1e-12);
        assert!((one.efficiency - 1.0).abs() < 1e-12 && one.batch == 1);
        // Four samples on the fullest of three devices; two times 8 MB over the link.
        let three = work.on(3, &link);
        assert!((three.compute - 0.4).abs() < 1e-12);
        assert!((three.exchange - 1.6).abs() < 1e-12);
        assert!((three.efficiency - 1.0 / 6.0).abs() < 1e-12);
        // 144 samples per device take 14.4 s, nine times as long as the exchange.
        assert_eq!(three.batch, 3 * 144);
        let larger = Workload {
            batch: three.batch,
            ..work
        };
        assert!((larger.on(3, &link).efficiency - 0.9).abs() < 1e-9);

        // Gradients take two thirds of what the weights take, 8 MB.
        let ring = Link { nccl: true, ..link };
        let three = larger.on(3, &ring);
        assert!((three.all_reduce - 0.8 * 2.0 / 3.0).abs() < 1e-12);
        assert!((three.exchange - 0.8 * 5.0 / 3.0).abs() < 1e-12);
    }
}
