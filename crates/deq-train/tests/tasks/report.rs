//! The page of a run.

use deq_train::records::{EvalRecord, Phase, Record, SolveRecord, StepRecord};
use deq_train::report::{NamedRun, totals, write_comparison, write_report};
use deq_train::{Measure, Quality};

#[test]
fn the_page_holds_every_curve_and_nothing_from_outside() {
    let solve = SolveRecord {
        nfe: 9,
        steps: 8.5,
        residual: 5e-4,
        ..SolveRecord::default()
    };
    let mut records: Vec<Record> = (1..=500)
        .map(|step| {
            Record::Step(StepRecord {
                step,
                phase: Phase::Equilibrium,
                loss: 4.0 - 0.002 * step as f64,
                targets: 64,
                quality: None,
                forward_nfe: 10,
                forward: Some(solve.clone()),
                backward: Some(solve.clone()),
                penalty: None,
                learning_rate: 1e-3,
                seconds: 0.5,
            })
        })
        .collect();
    for step in [250, 500] {
        records.push(Record::Eval(EvalRecord {
            step,
            split: "valid".to_owned(),
            loss: 3.0,
            quality: Quality::new(Measure::Perplexity, 3.0_f64.exp()),
            targets: 1000,
            batches: 10,
            nfe_per_solve: 9.0,
            steps: Some(8.0),
            residual: Some(6e-4),
            status: solve.status,
            spectral_radius: Some(0.8),
            residual_by_step: vec![1.0, 0.1, 0.01],
            seconds: 1.0,
        }));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.html");
    let header = ("a < b", &totals(&records)[..]);
    write_report(&path, header, &records, "<p>more</p>").unwrap();
    let page = std::fs::read_to_string(path).unwrap();
    assert_eq!(
        page.matches("<svg").count(),
        if cfg!(feature = "charts") { 5 } else { 0 }
    );
    assert!(page.contains("<p>more</p>"));
    assert!(page.contains("a &lt; b") && page.contains("5000") && page.contains("4:10"));
    assert!(!page.contains("src=") && !page.contains("href="));

    let runs = ["with", "without & alone"].map(|name| NamedRun {
        name: name.to_owned(),
        records: records.clone(),
    });
    let path = folder.path().join("comparison.html");
    write_comparison(&path, &runs).unwrap();
    let page = std::fs::read_to_string(path).unwrap();
    // Nothing converged or not, so that there are no shares to draw.
    let charts = if cfg!(feature = "charts") { 7 } else { 0 };
    assert_eq!(page.matches("<svg").count(), charts);
    assert!(page.contains("<td>500</td>") && page.contains("without &amp; alone"));
    assert!(!page.contains("src=") && !page.contains("href="));
}
