//! The task: its data, its network, its measure.

use super::batches::{ImagesBatch, ImagesData, LeftOut};
use super::config::{ImagesModelConfig, ImagesTask, PRESETS, depth};
use super::confusion::Confusion;
use super::error::ImagesError;
use super::gallery;
use super::model::{ImagesModel, ImagesNetwork};
use crate::error::{RunError, TrainError};
use crate::measure::{Detail, Measure, Quality};
use crate::presets::Preset;
use crate::recipe::Network;
use crate::run::Trained;
use crate::task::{BatchPlan, Batches, Opening, Split, Task};
use burn::tensor::{Device, TensorData};
use deq_data::{LabelSurvey, LoaderConfig, Skipped, Spread, Transform, VisionSplits, VisionTask};
use deq_models::checkpoint::{LoadReport, StateDict};
use deq_models::{ResNetConfig, StepNumbers};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Layers that turn the equilibrium, or the last stage of a ResNet, into scores: they depend on the
/// task and its classes.
const HEADS: [&str; 6] = [
    "incre_modules.",
    "downsamp_modules.",
    "final_layer.",
    "classifier.",
    "last_layer.",
    "fc.",
];

impl Task for ImagesTask {
    const NAME: &'static str = "images";
    const PLACES: &'static [&'static str] = &["data"];

    type Model = ImagesModel;
    type Data = ImagesData;

    fn open(&mut self, from: &Opening<'_>) -> Result<ImagesData, TrainError> {
        self.validate_kind()?;
        let splits = self.data.open()?;
        let classes = splits.train.classes().len();
        self.classes = splits.train.classes().to_vec();
        *self.model.classes() = classes;
        self.validate_model()?;
        if let Some(resnet) = &mut self.resnet {
            resnet.num_classes = classes;
            if resnet.width == 0 {
                *resnet = resnet.clone().with_parameters_near(self.model.parameters());
            }
        }
        self.data_weights = splits.train.class_weights();
        self.fingerprint = Some(splits.fingerprint()?);
        if let Some(run) = from.run {
            self.require_data_of(run, from.training)?;
        }
        let left_out = LeftOut::default();
        let labels = match from.training {
            true => {
                left_out.extend(unusable(&splits, from)?);
                surveyed(&splits)?
            }
            false => None,
        };
        Ok(ImagesData {
            splits,
            labels,
            left_out,
        })
    }

    fn init(&self, network: Network, device: &Device) -> Result<ImagesModel, TrainError> {
        use ImagesModelConfig::{Classifier, Segmenter};
        let network = match (network, &self.model) {
            (Network::Layers { .. }, _) => {
                ImagesNetwork::Resnet(self.resnet(network)?.init(device)?)
            }
            (_, Classifier(config)) => ImagesNetwork::Classifier(config.init(device)?),
            (_, Segmenter(config)) => ImagesNetwork::Segmenter(config.init(device)?),
        };
        let weights = self.class_weights.as_ref().unwrap_or(&self.data_weights);
        Ok(ImagesModel::new(network, weights))
    }

    fn training(
        &self,
        data: &ImagesData,
        plan: &BatchPlan,
    ) -> Result<Box<dyn Batches<ImagesBatch>>, TrainError> {
        let config = LoaderConfig {
            workers: plan.workers,
            ..LoaderConfig::training(plan.batch, plan.seed)
        };
        let transform = (
            "task.train_transform",
            &self.train_transform,
            self.side_multiple(),
        );
        data.batches(data.splits.train.clone(), transform, config)
    }

    /// The held-out part is the `valid` split; there is no other.
    fn held_out(
        &self,
        data: &ImagesData,
        split: Split,
        plan: &BatchPlan,
    ) -> Result<Box<dyn Batches<ImagesBatch>>, TrainError> {
        if split == Split::Test {
            return Err(RunError::NoSplit { split: "test" }.into());
        }
        let config = LoaderConfig::evaluation(self.held_out_batch(plan.batch));
        let spread = Arc::new(Spread::new(data.splits.test.clone()));
        let transform = (
            "task.eval_transform",
            &self.eval_transform,
            self.side_multiple(),
        );
        data.batches(spread, transform, config)
    }

    fn measure(&self) -> Measure {
        match self.model.task() {
            VisionTask::Classification => Measure::share("accuracy"),
            VisionTask::Segmentation => Measure::share("mean IoU"),
        }
    }

    fn quality(&self, _: f64, confusion: &Confusion) -> Quality {
        let accuracy = confusion.accuracy();
        if self.model.task() == VisionTask::Classification {
            return Quality::new(self.measure(), accuracy);
        }
        let iou = confusion.iou();
        let present: Vec<f64> = iou.iter().flatten().copied().collect();
        let mean = present.iter().sum::<f64>() / present.len().max(1) as f64;
        // A mean over one class that is everywhere is perfect, and means nothing.
        let measure = match present.len() {
            0 | 1 => Measure::share("IoU of the only class that occurs"),
            _ => self.measure(),
        };
        let pixels = Detail {
            measure: Measure::share("pixel accuracy"),
            value: Some(accuracy),
        };
        let by_class = self.classes.iter().zip(iou).map(|(class, value)| Detail {
            measure: Measure::Share(format!("IoU of {class}").into()),
            value,
        });
        Quality {
            others: std::iter::once(pixels).chain(by_class).collect(),
            ..Quality::new(measure, mean)
        }
    }

    /// Unknown where images keep the sizes of their files.
    fn step_numbers(&self, batch: usize, on_host: bool) -> Option<StepNumbers> {
        let sides = match self.train_transform {
            Transform::Whole | Transform::PadToMultiple { .. } => return None,
            Transform::Resize { width, height } => [height, width],
            Transform::ScaleCrop { width, height, .. } => [height, width],
            Transform::PadCrop { size, .. } => [size; 2],
            Transform::RandomResizedCrop { size } => [size; 2],
            Transform::CenterCrop { crop, .. } => [crop; 2],
        };
        Some(match &self.model {
            ImagesModelConfig::Classifier(model) => model.step_numbers(batch, sides, on_host),
            ImagesModelConfig::Segmenter(model) => model.step_numbers(batch, sides, on_host),
        })
    }

    fn validate(&self) -> Result<(), TrainError> {
        self.validate_kind()?;
        self.validate_model()?;
        self.validate_weights()?;
        self.validate_transforms()
    }

    fn presets() -> &'static [Preset] {
        PRESETS
    }

    fn prepare(&mut self, network: Network) -> Result<(), TrainError> {
        self.resnet = match network {
            Network::Layers { .. } => Some(self.resnet(network)?),
            Network::Equilibrium | Network::WeightTied { .. } => None,
        };
        Ok(())
    }

    fn facts(&self, data: &ImagesData, _: Split) -> Vec<(String, String)> {
        let fact = |name: &str, value: String| (name.to_owned(), value);
        let mut facts = vec![
            fact("data", self.data.to_string()),
            fact("classes", self.classes.join(", ")),
        ];
        let labels = data.labels.as_ref();
        facts.extend(labels.map(|labels| fact("pixels by label", labels.to_string())));
        let cut_short = data.left_out.cut_short();
        if cut_short > 0 {
            facts.push(fact("files read without their end", cut_short.to_string()));
        }
        facts
    }

    /// Those that cannot be read among the batches made so far, and those that were no images from
    /// the beginning.
    fn left_out(&self, data: &ImagesData) -> Vec<(PathBuf, String)> {
        let mut files = data.left_out.list();
        for part in [&data.splits.train, &data.splits.test] {
            let other = |path: &PathBuf| (path.clone(), "not an image by its ending".to_owned());
            files.extend(part.left_out().iter().map(other));
        }
        files
    }

    fn gallery(&self, trained: &Trained<Self>, data: &ImagesData) -> Result<String, TrainError> {
        let drawing = gallery::draw(trained, &data.splits);
        let path = trained.run.join("predictions.svg");
        crate::files::write_whole(&path, drawing.as_bytes())?;
        let figure = format!("<figure>{drawing}</figure>\n");
        Ok(format!("<h2>Predictions</h2>\n{figure}"))
    }

    /// A multiscale model of the original program, or a ResNet of torchvision.
    fn sized_by(&mut self, file: &StateDict) -> Result<(), TrainError> {
        match &mut self.resnet {
            Some(resnet) => {
                let other = ResNetConfig::from_state_dict(file)?;
                let (expected, found) = (depth(resnet), depth(&other));
                if expected != found {
                    return Err(ImagesError::OtherDepth { expected, found }.into());
                }
                *resnet = other;
            }
            None => self.model = self.model.sized_by(file)?,
        }
        Ok(())
    }

    fn fits(&self, before: &Self, file: &Path) -> Result<(), TrainError> {
        let expected = match &before.resnet {
            Some(resnet) => resnet.num_classes,
            None => *before.model.clone().classes(),
        };
        let found = self.classes.len();
        match expected == found {
            true => Ok(()),
            false => Err(ImagesError::NumberOfClasses {
                path: file.to_owned(),
                expected,
                found,
            }
            .into()),
        }
    }

    fn load(
        &self,
        model: ImagesModel,
        file: &StateDict,
    ) -> Result<(ImagesModel, LoadReport), TrainError> {
        model.load(file)
    }

    fn state_dict(&self, model: &ImagesModel) -> Result<Vec<(String, TensorData)>, TrainError> {
        model.state_dict()
    }

    fn is_head(name: &str) -> bool {
        HEADS.iter().any(|head| name.starts_with(head))
    }
}

/// Held-out files that cannot be used, each of which is told, before anything is trained.
fn unusable(splits: &VisionSplits, from: &Opening<'_>) -> Result<Vec<Skipped>, TrainError> {
    let found = splits.test.unusable()?;
    if let Some(Skipped { path, reason }) = found.first()
        && found.len() == splits.test.len()
    {
        return Err(ImagesError::NothingHeldOut {
            files: found.len(),
            path: path.clone(),
            reason: reason.clone(),
        }
        .into());
    }
    if let Some(progress) = from.progress {
        for Skipped { path, reason } in &found {
            let what = format!("{}: {reason}", path.display());
            progress(&format!("left out of the held-out images: {what}"));
        }
    }
    Ok(found)
}

/// The labels of training maps, if there are maps. Every class must occur in them; held-out maps
/// need not show all, but no part may have ids that are neither a class nor ignored.
fn surveyed(splits: &VisionSplits) -> Result<Option<LabelSurvey>, TrainError> {
    let labels = splits.train.label_survey()?;
    if let Some(labels) = &labels {
        labels.require_complete()?;
    }
    if let Some(labels) = splits.test.label_survey()? {
        labels.require_known()?;
    }
    Ok(labels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Recipe;

    fn task(preset: &str) -> ImagesTask {
        Recipe::<ImagesTask>::preset(preset).unwrap().task
    }

    #[test]
    fn quality_is_accuracy_or_mean_intersection_over_union() {
        let confusion = Confusion::new(3, &[0, 0, 1, 1], &[0, 1, 1, 1]);
        let mut task = task("mini");
        task.classes = ["a", "b", "c"].map(str::to_owned).to_vec();
        let quality = task.quality(1.0, &confusion);
        assert_eq!(quality, Quality::new(Measure::share("accuracy"), 0.75));
        task.model = self::task("mini-shapes-segmentation").model;
        let quality = task.quality(1.0, &confusion);
        assert_eq!(quality.measure, Measure::share("mean IoU"));
        let everywhere = task.quality(1.0, &Confusion::new(3, &[0, 0], &[0, 0]));
        let only = "IoU of the only class that occurs";
        assert_eq!(everywhere.measure.name(), only);
        assert!((quality.value - (0.5 + 2.0 / 3.0) / 2.0).abs() < 1e-12);
        let others = quality.others.iter();
        let others: Vec<_> = others.map(|o| (o.measure.name(), o.value)).collect();
        assert_eq!(
            others,
            [
                ("pixel accuracy", Some(0.75)),
                ("IoU of a", Some(0.5)),
                ("IoU of b", Some(2.0 / 3.0)),
                ("IoU of c", None),
            ]
        );
    }
}
