//! Which token comes next.

use deq_train::tasks::text::Sampling;

/// Probabilities 0.1, 0.4, 0.3, 0.2.
fn log_probs() -> Vec<f64> {
    [0.1_f64, 0.4, 0.3, 0.2].map(f64::ln).to_vec()
}

fn shares(sampling: &Sampling, never: Option<u32>) -> Vec<f64> {
    let mut counts = [0.0; 4];
    for k in 0..10_000 {
        let u = (k as f64 + 0.5) / 10_000.0;
        let token = sampling.draw(&log_probs(), never, u).unwrap();
        counts[token as usize] += 1e-4;
    }
    counts.to_vec()
}

fn assert_shares(sampling: &Sampling, never: Option<u32>, expected: [f64; 4]) {
    for (share, expected) in shares(sampling, never).iter().zip(expected) {
        assert!(
            (share - expected).abs() < 2e-4,
            "{sampling:?}: {share} {expected}"
        );
    }
}

fn sampling(temperature: f64, top_k: Option<usize>, top_p: f64) -> Sampling {
    Sampling {
        temperature,
        top_k,
        top_p,
    }
}

#[test]
fn tokens_come_as_often_as_the_distribution_says() {
    assert_shares(&sampling(1.0, None, 1.0), None, [0.1, 0.4, 0.3, 0.2]);
    // Half the temperature squares probabilities.
    let squares = [0.01, 0.16, 0.09, 0.04].map(|p| p / 0.30);
    assert_shares(&sampling(0.5, None, 1.0), None, squares);
    assert_shares(&sampling(0.0, None, 1.0), None, [0.0, 1.0, 0.0, 0.0]);
}

#[test]
fn the_tail_is_cut() {
    let half = [0.0, 4.0 / 7.0, 3.0 / 7.0, 0.0];
    assert_shares(&sampling(1.0, Some(2), 1.0), None, half);
    assert_shares(&sampling(1.0, None, 0.6), None, half);
    // A set that just one token fills.
    assert_shares(&sampling(1.0, None, 0.3), None, [0.0, 1.0, 0.0, 0.0]);
    // Without the likeliest token the others are scaled up.
    let rest = [1.0 / 6.0, 0.0, 0.5, 1.0 / 3.0];
    assert_shares(&sampling(1.0, None, 1.0), Some(1), rest);
}

#[test]
fn settings_out_of_range_are_named() {
    let message = |sampling: Sampling| sampling.validate().unwrap_err().to_string();
    assert!(sampling(0.0, Some(1), 1.0).validate().is_ok());
    assert_eq!(
        message(sampling(-1.0, None, 1.0)),
        "temperature is -1, but must be a finite number of at least 0"
    );
    assert!(message(sampling(1.0, Some(0), 1.0)).starts_with("top_k is 0"));
    assert!(message(sampling(1.0, None, 1.5)).starts_with("top_p is 1.5"));
}

#[test]
fn what_is_no_distribution_is_an_error() {
    let nan = [0.0, f64::NAN, -1.0];
    let impossible = [f64::NEG_INFINITY; 3];
    let cases: [(&[f64], Option<u32>); 4] = [
        (&nan, None),
        (&impossible, None),
        (&[], None),
        (&[0.0], Some(0)),
    ];
    for sampling in [sampling(0.0, None, 1.0), sampling(1.0, Some(1), 0.5)] {
        for (log_probs, never) in cases {
            let error = sampling.draw(log_probs, never, 0.5).unwrap_err();
            assert!(
                error.to_string().starts_with("no token can be drawn"),
                "{error}"
            );
        }
        // A token that cannot come leaves the others.
        let token = sampling
            .draw(&[f64::NEG_INFINITY, -3.0], None, 0.5)
            .unwrap();
        assert_eq!(token, 1);
    }
}
