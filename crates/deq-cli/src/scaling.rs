//! `deq presets --scaling`.

use crate::print;
use anyhow::Result;
use deq_train::tasks::images::ImagesTask;
use deq_train::tasks::text::TextTask;
use deq_train::{LINKS, Recipe, ScalingRow, WORKLOADS};
use serde::Serialize;

/// A step of one training over one link.
#[derive(Serialize)]
struct Table {
    preset: &'static str,
    link: &'static str,
    rows: Vec<ScalingRow>,
}

pub(crate) fn run(json: bool) -> Result<()> {
    let devices = || (0..=6).map(|power| 1 << power);
    let pairs = WORKLOADS
        .iter()
        .flat_map(|work| LINKS.iter().map(move |link| (work, link)));
    let tables: Vec<Table> = pairs
        .map(|(work, link)| Table {
            preset: work.name,
            link: link.name,
            rows: devices().map(|devices| work.on(devices, link)).collect(),
        })
        .collect();
    if json {
        return print::json(&tables);
    }
    for work in &WORKLOADS {
        println!(
            "{}, batch {}: {:.1} ms per sample ({})",
            work.name,
            work.batch,
            1e3 * work.sample_seconds,
            work.source
        );
        let steps = match Recipe::<TextTask>::preset(work.name) {
            Ok(recipe) => recipe.steps,
            Err(_) => Recipe::<ImagesTask>::preset(work.name)?.steps,
        };
        let seconds = (steps * work.batch) as f64 * work.sample_seconds;
        println!(
            "  {steps} steps take {:.0} hours on one device",
            seconds / 3600.0
        );
    }
    for table in tables {
        println!("\n{} over {}", table.preset, table.link);
        println!("devices  compute s  exchange s  all-reduce s  efficiency  batch for 90 %");
        for row in table.rows {
            println!(
                "{:>7}  {:>9.3}  {:>10.3}  {:>12.3}  {:>8.0} %  {:>14}",
                row.devices,
                row.compute,
                row.exchange,
                row.all_reduce,
                100.0 * row.efficiency,
                row.batch
            );
        }
    }
    Ok(())
}
