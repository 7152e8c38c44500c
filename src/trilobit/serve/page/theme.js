// Before anything is painted: light or dark, language and direction as chosen last time.
{
  let kept = {};
  try { kept = JSON.parse(localStorage.getItem("trilobit")) || {}; } catch { /* nothing kept */ }
  const root = document.documentElement;
  const language = kept.language || (navigator.language.startsWith("ar") ? "ar" : "en");
  root.lang = language;
  root.dir = language === "ar" ? "rtl" : "ltr";
  if (kept.theme === "light" || kept.theme === "dark") root.dataset.theme = kept.theme;
}
