//! `deq report`.

use anyhow::{Result, bail};
use clap::Args;
use deq_train::RunFolder;
use deq_train::files::write_whole;
use deq_train::records::read_records;
use deq_train::report::{NamedRun, comparison_charts, side_by_side, write_comparison};
use std::path::PathBuf;

#[derive(Args)]
pub(crate) struct ReportArgs {
    /// The folders of the runs.
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// The page to write.
    #[arg(long, value_name = "FILE", default_value = "report.html")]
    out: PathBuf,
    /// Also draw the steps of forward solves and how many converge as one SVG.
    #[arg(long, value_name = "FILE")]
    picture: Option<PathBuf>,
}

pub(crate) fn run(args: &ReportArgs) -> Result<()> {
    let mut runs: Vec<NamedRun> = Vec::with_capacity(args.runs.len());
    for path in &args.runs {
        let folder = RunFolder::new(path.clone());
        if !folder.exists() {
            bail!("{} holds no run", path.display());
        }
        let records = read_records(&folder.metrics())?;
        let last = path.file_name().map(|name| name.to_string_lossy());
        let name = match last {
            Some(name) if runs.iter().all(|run| run.name != name) => name.into_owned(),
            _ => path.display().to_string(),
        };
        runs.push(NamedRun { name, records });
    }
    write_comparison(&args.out, &runs)?;
    println!("{}", args.out.display());
    if let Some(picture) = &args.picture {
        let charts = comparison_charts(&runs);
        let Some(forward) = charts.get(..2) else {
            bail!("there is no chart of forward solves");
        };
        write_whole(picture, side_by_side(forward)?.as_bytes())?;
        println!("{}", picture.display());
    }
    Ok(())
}
