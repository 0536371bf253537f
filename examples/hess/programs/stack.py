#!/usr/bin/env python3
"""Stack the reduced runs: fit a power law, measure flux points, map the significance.

    python stack.py [FOLDER]        (where the files of reduce.py lie; the current directory by default)

writes sed.fits, spectrum.json, counts.fits, significance.fits and significance.png here.
"""

import json
import sys
from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.io import fits
from gammapy.datasets import Datasets, MapDataset, SpectrumDatasetOnOff
from gammapy.estimators import ExcessMapEstimator, FluxPointsEstimator
from gammapy.modeling import Fit
from gammapy.modeling.models import PowerLawSpectralModel, SkyModel
from matplotlib.figure import Figure

# Whose data want to be named on a plot, and how.
CREDITS = {"H.E.S.S. Collaboration": "HESS DL3 DR1, H.E.S.S. collaboration"}

folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
spectra = sorted(folder.glob("pha_obs*.fits"))
maps = sorted(folder.glob("map_obs*.fits.gz"))
if not spectra or len(spectra) != len(maps):
    sys.exit(f"{folder} holds {len(spectra)} spectra and {len(maps)} maps: bring one of each for every run")
origin = {key: fits.getval(spectra[0], key) for key in ("TELESCOP", "INSTRUME", "ORIGIN", "OBJECT")}


def write(hdus: fits.HDUList, filename: str) -> None:
    """Write with checksums, and with the cards that say whose data of which source this came from."""
    hdus[0].header.update(origin)
    hdus.writeto(filename, checksum=True, overwrite=True)


# Spectrum: one power law above 0.6 TeV, then flux points.
runs = Datasets([SpectrumDatasetOnOff.read(path) for path in spectra])
stacked = runs.stack_reduce(name="stacked")
stacked.mask_fit = stacked.counts.geom.energy_mask(energy_min=0.6 * u.TeV)
law = PowerLawSpectralModel(index=2.6, amplitude="4e-11 cm-2 s-1 TeV-1", reference="1 TeV")
stacked.models = SkyModel(law, name="source")
fit = Fit().run(stacked)
points = FluxPointsEstimator(energy_edges=np.geomspace(0.7, 20, 7) * u.TeV, source="source").run(stacked)
table = fits.BinTableHDU(points.to_table(sed_type="dnde"), name="FLUXPOINTS")
write(fits.HDUList([fits.PrimaryHDU(), table]), "sed.fits")

# Sky maps: counts, and the significance of the excess within 0.11 deg.
sky = MapDataset.read(maps[0])
for path in maps[1:]:
    sky.stack(MapDataset.read(path))
excess = ExcessMapEstimator(correlation_radius="0.11 deg", energy_edges=[0.7, 20] * u.TeV).run(sky)
significance = excess.sqrt_ts.sum_over_axes(keepdims=False)
write(sky.counts.sum_over_axes(keepdims=False).to_hdulist(hdu="COUNTS"), "counts.fits")
write(significance.to_hdulist(hdu="SIGNIFICANCE"), "significance.fits")

figure = Figure(figsize=(6.4, 5.6), layout="constrained")
axes = figure.add_subplot(projection=significance.geom.wcs)
significance.plot(ax=axes)
figure.colorbar(axes.images[0], label="significance")
axes.set_title(f"{origin['OBJECT']}, {len(spectra)} runs")
figure.supxlabel(CREDITS.get(origin["ORIGIN"], origin["ORIGIN"]), fontsize="small")
figure.savefig("significance.png", dpi=120)

result = {
    "object": origin["OBJECT"],
    "origin": origin["ORIGIN"],
    "fit_converged": bool(fit.success),
    "index": {"value": law.index.value, "error": law.index.error},
    "amplitude": {"value": law.amplitude.value, "error": law.amplitude.error, "unit": "TeV-1 s-1 cm-2"},
    "reference_energy": {"value": 1.0, "unit": "TeV"},
    "significance": float(stacked.info_dict()["sqrt_ts"]),
    "map_peak_significance": float(np.nanmax(significance.data)),
    "ontime": {"value": stacked.gti.time_sum.to_value("s"), "unit": "s"},
    "runs": {run.name: {"on": int(run.counts.data.sum()), "off": int(run.counts_off.data.sum())} for run in runs},
}
Path("spectrum.json").write_text(json.dumps(result, indent=2) + "\n")
index, amplitude = result["index"], result["amplitude"]
print(f"{origin['OBJECT']}: index {index['value']:.3f} +- {index['error']:.3f}")
print(f"at 1 TeV ({amplitude['value']:.2e} +- {amplitude['error']:.1e}) /cm2/s/TeV")
