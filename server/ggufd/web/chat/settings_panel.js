// The panel in which requests are set.
import { lazy } from "../shared/lazy.js";

/** Everything a request can say, with the server's defaults. */
export const SettingsPanel = lazy(async () => (await import("../settings/panel.js")).SettingsPanel);
