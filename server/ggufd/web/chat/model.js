// The choice of the model, which is loaded where the server knows several.
import { lazy } from "../shared/lazy.js";
import { facts } from "../shared/server.js";
import { computed } from "../shared/view.js";

export const several = computed(() => (facts.value?.models ?? 1) > 1);

export const ModelChoice = lazy(async () => (await import("./model_choice.js")).ModelChoice);
export const ModelNote = lazy(async () => (await import("./model_choice.js")).ModelNote);
